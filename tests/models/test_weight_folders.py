"""Which files are read as the weights of a model, in folders as downloads, hubs and other programs leave them."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tiny
from llm4gen.models.errors import UnreadableFile
from llm4gen.models.files.folder import weight_files
from llm4gen.models.files.texts import text_in
from llm4gen.models.files.weights import open_weights
from llm4gen.models.llm import open_llm
from llm4gen.models.tokens import load_tokenizer

# Sizes in bytes. A weight file of 0 bytes is an unfinished download; every other one here holds binary data.
SMALL, LARGE = 10, 20
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def put(folder, files):
    """files: name → size in bytes, the text, or for an index the shards that it names."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            data = json.dumps({"weight_map": {f"tensor {shard}": shard for shard in content}}).encode()
        else:
            data = content.encode() if isinstance(content, str) else b"\0" * content
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("files", "meant"),
    [
        # variants and formats beside each other: what transformers reads if it is told nothing
        ({"model.fp16.safetensors": LARGE, "model.safetensors": SMALL}, ["model.safetensors"]),
        ({"pytorch_model.bin": LARGE, "model.safetensors": SMALL}, ["model.safetensors"]),
        ({"pytorch_model.bin": SMALL, "model.fp16.safetensors": LARGE}, ["pytorch_model.bin"]),
        ({"model.fp8.safetensors": SMALL, "model.fp16.safetensors": LARGE}, ["model.fp16.safetensors"]),
        ({"consolidated.safetensors": LARGE, "model.safetensors": SMALL}, ["model.safetensors"]),
        ({"consolidated.safetensors": LARGE, "model.bf16.safetensors": SMALL}, ["model.bf16.safetensors"]),
        (
            {"t5xxl_fp8_e4m3fn.safetensors": SMALL, "t5xxl_fp16.safetensors": LARGE},
            ["t5xxl_fp16.safetensors"],
        ),
        ({"rankgen.bin": SMALL}, ["rankgen.bin"]),
        # shards
        ({**dict.fromkeys(SHARDS, SMALL), INDEX: list(SHARDS)}, SHARDS),
        (
            {**dict.fromkeys(SHARDS, LARGE), INDEX: list(SHARDS), "model.safetensors": SMALL},
            ["model.safetensors"],
        ),
        (dict.fromkeys(SHARDS, SMALL), SHARDS),
        ({**dict.fromkeys(SHARDS, SMALL), "consolidated.safetensors": LARGE}, SHARDS),
        ({"a.safetensors": SMALL, "b.safetensors": LARGE, INDEX: ["a.safetensors", "b.safetensors"]}, "ab"),
        (
            {f"model-0000{number}-of-00002.fp16.safetensors": SMALL for number in (1, 2)},
            [f"model-0000{number}-of-00002.fp16.safetensors" for number in (1, 2)],
        ),
        (
            {
                "pytorch_model.bin.index.fp16.json": ["x-1.bin", "x-2.bin"],
                **{"x-1.bin": SMALL, "x-2.bin": SMALL, "other.bin": LARGE},
            },
            ["x-1.bin", "x-2.bin"],
        ),
        # an index whose shards are not there
        ({INDEX: list(SHARDS), "model.safetensors": SMALL}, ["model.safetensors"]),
        ({INDEX: list(SHARDS), "pytorch_model.bin": SMALL}, ["pytorch_model.bin"]),
        ({INDEX: list(SHARDS), SHARDS[0]: LARGE, "pytorch_model.bin": SMALL}, ["pytorch_model.bin"]),
        ({SHARDS[0]: LARGE, "pytorch_model.bin": SMALL}, ["pytorch_model.bin"]),
        ({"optimizer.bin": SMALL}, ["optimizer.bin"]),  # so that an error can say what it is
        ({INDEX: ["model-00001-of-00003.safetensors"], **dict.fromkeys(SHARDS, SMALL)}, SHARDS),
        ({INDEX: "{", "model.fp16.safetensors": SMALL}, ["model.fp16.safetensors"]),
        # what is no model, is not complete, or stands in a file's place
        ({"training_args.bin": SMALL, "optimizer.bin": LARGE, "weights.bin": SMALL}, ["weights.bin"]),
        ({"optimizer.pt": LARGE, "scheduler.pt": SMALL, "rng_state_0.pth": SMALL, "t5.pt": SMALL}, ["t5.pt"]),
        ({"._t5.safetensors": LARGE, "t5.safetensors": SMALL, ".DS_Store": SMALL}, ["t5.safetensors"]),
        ({"a.safetensors": LARGE, "a.safetensors.aria2": SMALL, "b.safetensors": SMALL}, ["b.safetensors"]),
        ({"model.safetensors": 0, "pytorch_model.bin": SMALL}, ["pytorch_model.bin"]),
        ({"model.safetensors": "Access denied", "pytorch_model.bin": SMALL}, ["pytorch_model.bin"]),
        ({"adapter_model.bin": LARGE, "adapter_config.json": "{}", "merged.bin": SMALL}, ["merged.bin"]),
    ],
)
def test_the_weights_that_are_meant_in_a_folder_are_read(files, meant, tmp_path):
    put(tmp_path / "model", files)
    meant = [f"{letter}.safetensors" for letter in meant] if isinstance(meant, str) else list(meant)
    assert [file.name for file in weight_files(tmp_path / "model")] == meant


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_shard_stands_for_all(chosen, tmp_path):
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for name in names:
        save_file({name: torch.ones(2)}, tmp_path / name)
    assert open_weights(tmp_path / names[chosen]).tensors.keys() == set(names)
    (tmp_path / names[1]).unlink()
    with pytest.raises(
        UnreadableFile, match=rf"lacks 1 of 3 shards: {names[1]}\. Download them into the same"
    ):
        open_weights(tmp_path / names[0])


def test_the_name_of_a_shard_alone_decides_nothing(tmp_path):
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), tmp_path / SHARDS[0])
    assert open_llm(tmp_path / SHARDS[0]).kind == open_llm(tmp_path).kind == "t5"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_without_their_index_load(suffix, tmp_path):
    oracle = tiny.t5_encoder()
    tiny.save_shards(tmp_path / "t5", tiny.rankgen_tensors(oracle), suffix)
    for number in (1, 2):
        part = tmp_path / "t5" / f"part-{number - 1}.{suffix}"
        part.rename(part.with_name(f"model-{number:05}-of-00002.{suffix}"))
    next((tmp_path / "t5").glob("*.index.json")).unlink()
    loaded = tiny.load_encoder(tmp_path / "t5")
    assert torch.equal(loaded.embedding.weight, oracle.shared.weight)


@pytest.mark.parametrize("files", [{}, {"config.json": "{}", "model.onnx": SMALL}, {"a.gguf": SMALL}])
def test_a_folder_without_weights_says_which_file_to_put_there(files, tmp_path):
    put(tmp_path / "model", files)
    with pytest.raises(
        UnreadableFile, match=r"folder model holds no weights\. Put the model's model\.safetensors"
    ):
        weight_files(tmp_path / "model")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 4917893319\n"
XET_POINTER = "# xet version 0\nfilesize = 4917893319\nhash = '08e4'\n"
TEXTS = {
    POINTER: r"pointer of Git LFS: a text of \d+ bytes that stands for the file of 4,917,893,319 bytes\. Run `git",
    XET_POINTER: "pointer of Git LFS.*4,917,893,319 bytes.*download the file itself",
    "<!DOCTYPE html>\n<html><title>Log in</title>": r"a web page of \d+ bytes.*begins with '<!DOCTYPE html>'",
    " \n": "white space in place of the file",
    '\ufeff<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "a web page.*AccessDenied",
    "Access to model google/gemma-3-1b-it is restricted.": r"a text of 51 bytes.*log in or accept a licence",
    "Entry not found": r"begins with 'Entry not found'.*download the file again",
    '{"error":"Invalid username or password."}': "a text .*Invalid username",
    "Zugriff verweigert: bitte zuerst anmelden und die Lizenz bestätigen. " * 20: "a text .*Zugriff",
}


@pytest.mark.parametrize("name", ["t5.safetensors", "t5.bin", "t5.pth", "t5.gguf"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_text_in_place_of_weights_is_named(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UnreadableFile, match=f"(?s){name} is .*{TEXTS[text]}") as caught:
        open_llm(tmp_path / name)
    assert "damaged" not in str(caught.value)


def test_a_text_that_powershell_wrote_is_named(tmp_path):
    (tmp_path / "t5.bin").write_text("Access denied", encoding="utf-16")
    with pytest.raises(UnreadableFile, match=r"a text of 28 bytes.*begins with 'Access denied'"):
        open_llm(tmp_path / "t5.bin")


@pytest.mark.parametrize(
    "head", [b"PK", b"GGUF", b"PK\3\4", b"\x80\2}q", b"X\0\0\0\0\0\0\0{}", "é".encode("latin-1")]
)
def test_a_file_that_is_no_text_is_not_called_one(head, tmp_path):
    (tmp_path / "t5.bin").write_bytes(head)
    assert text_in(tmp_path / "t5.bin") is None


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", [POINTER, "<html>Sign in</html>", "Access denied"])
def test_a_text_in_place_of_a_json_file_is_named(name, text, tmp_path):
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), tmp_path / "model.safetensors")
    (tmp_path / name).write_text(text, encoding="utf-8")
    read = open_llm if name == "config.json" else lambda folder: load_tokenizer(folder, tiny.VOCABULARY)
    with pytest.raises(UnreadableFile, match=f"{name} is a (pointer|web page|text)"):
        read(tmp_path)
