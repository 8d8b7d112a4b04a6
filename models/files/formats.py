"""File names: which of them hold weights, which file is a tokenizer, and the names of dtypes. Needs no torch."""

import re
from collections.abc import Iterable
from pathlib import Path

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", ".sft", *PICKLES)
GGUF = ".gguf"
TOKENIZER_FILE = "tokenizer.json"
# The dtypes that a user can choose for weights; `values.DTYPES` has torch's names for them.
DTYPE_NAMES = ("fp32", "bf16", "fp16", "fp8")

# Names, without the extension, of files that have a weight file's extension but hold no model of text: states of a
# training run, LoRAs and textual inversions, the other models of a diffusers pipeline, OpenVINO's weights, and
# llama.cpp's projectors of pictures and statistics.
NO_MODEL = re.compile(
    r"training_args|(optimizer|scheduler|scaler|sampler|rng_state|random_states)([-_]?\d+)*|.*_optim_states"
    r"|pytorch_lora_weights|learned_embeds.*|diffusion_pytorch_model.*|openvino_.*"
    r"|(.*[-_.])?mmproj([-_.].*)?|imatrix([-_.].*)?|.*[-_.]imatrix",
    re.IGNORECASE,
)
# What download programs append to the name of a file or folder that is not complete.
UNFINISHED = tuple(
    [".aria2", ".part", ".partial", ".crdownload", ".opdownload", ".download", ".incomplete", ".tmp", ".!qb"]
)
CONTROL_FILE = ".aria2"  # lies beside an incomplete file, which may have its full name and size already
# Folders of operating systems and network drives, with copies and deleted files in them.
SYSTEM_FOLDERS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information")
# A part of a model whose weights are in several files, as transformers, diffusers and llama.cpp name it.
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>(\.[^.]+)+)")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a `tokenizer.json`. ComfyUI installs nothing that reads a `spiece.model`."""
    return (folder / TOKENIZER_FILE).is_file()


def tokenizer_beside(folder: Path) -> Path | None:
    """The folder in which diffusers keeps the tokenizer of a pipeline's encoder: `tokenizer_2` for `text_encoder_2`."""
    match = re.fullmatch(r"text_encoder(_\d+)?", folder.name)
    return folder.with_name(f"tokenizer{match[1] or ''}") if match else None


def is_gguf(path: Path) -> bool:
    """Whether a file name is in llama.cpp's format, which the optional package `gguf` reads."""
    return path.suffix.lower() == GGUF


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system, a hub, a cloud drive or a download, by its name.

    Examples: `._model.safetensors` of macOS, `.model.safetensors.icloud`, `.git`, `.cache`, `@eaDir`; and Safari's
    folder `model.safetensors.download` with an incomplete file in it.
    """
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name.lower().endswith(UNFINISHED)


def set_name(name: str) -> str:
    """The same name for all shards of a model; any other file has its own name."""
    shard = SHARD.fullmatch(name)
    return f"{shard['stem']}-*-of-{shard['count']}{shard['rest']}" if shard else name


def model_names(names: Iterable[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Which of a folder's files hold a model's weights, sorted. They are judged by the names of all its files.

    Left out are hidden and unfinished files, and files that hold no model (`NO_MODEL`).
    """
    every = set(names)
    return [
        name
        for name in sorted(every)
        if name.lower().endswith(suffixes)
        and not is_hidden(name)
        and not NO_MODEL.fullmatch(name.rpartition(".")[0])
        and name + CONTROL_FILE not in every
        and not (name.startswith("adapter_model.") and "adapter_config.json" in every)  # PEFT's LoRA
    ]
