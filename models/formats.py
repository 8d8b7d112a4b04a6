"""Which files may hold weights, by their ending, and which one a tokenizer."""

from pathlib import Path

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", ".sft", *PICKLES)
TOKENIZER_FILE = "tokenizer.json"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that can be read with what the host brings (`spiece.model` cannot)."""
    return (folder / TOKENIZER_FILE).is_file()
