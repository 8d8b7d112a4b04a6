"""File names: which extensions hold weights, which file is a tokenizer, and the names of dtypes. Needs no torch."""

from pathlib import Path

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", ".sft", *PICKLES)
GGUF = ".gguf"
TOKENIZER_FILE = "tokenizer.json"
# The dtypes that a user can choose for weights; `values.DTYPES` has torch's names for them.
DTYPE_NAMES = ("fp32", "bf16", "fp16", "fp8")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a `tokenizer.json`. ComfyUI installs nothing that reads a `spiece.model`."""
    return (folder / TOKENIZER_FILE).is_file()


def is_gguf(path: Path) -> bool:
    """Whether a file name is in llama.cpp's format, which the optional package `gguf` reads."""
    return path.suffix.lower() == GGUF
