"""Which files may hold weights, by their ending, and which one a tokenizer."""

from pathlib import Path

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", ".sft", *PICKLES)
GGUF = ".gguf"
TOKENIZER_FILE = "tokenizer.json"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that can be read with what the host brings (`spiece.model` cannot)."""
    return (folder / TOKENIZER_FILE).is_file()


def is_gguf(path: Path) -> bool:
    """Whether a name is llama.cpp's format, which the optional package `gguf` reads."""
    return path.suffix.lower() == GGUF
