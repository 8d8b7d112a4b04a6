"""Which tokenizer an encoder is used with: its own, or the T5 tokenizer that ComfyUI ships."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..models.errors import LLM4GENError, MissingTokenizer, words_of
from ..models.files.formats import TOKENIZER_FILE
from ..models.llm import LLMFile, open_llm
from ..models.tokens import load_tokenizer
from . import folders
from .file_cache import FileCache

T5_VOCABULARY = 32128  # rows of the token embedding in every published T5 v1.1


def tokenizer_of(file: LLMFile) -> PreTrainedTokenizerBase:
    """Raises: MissingTokenizer."""
    place = folders.tokenizer_place(file.path, file.is_t5)
    if file.is_t5 and file.kind != "t5" and place == folders.host_t5_tokenizer():
        raise MissingTokenizer(
            f"{file.path.name} is {file.kind}, which has another tokenizer than T5. Put it into a folder of its own, "
            f"with its config.json and its {TOKENIZER_FILE} (a spiece.model cannot be read; byt5 reads bytes, has no "
            "such file, and cannot be used)."
        )
    return load_tokenizer(place, file.config.vocabulary)


@cache
def host_tokenizer() -> PreTrainedTokenizerBase:
    """ComfyUI's T5 tokenizer. Raises: MissingTokenizer."""
    return load_tokenizer(folders.host_t5_tokenizer(), T5_VOCABULARY)


@dataclass(frozen=True)
class OpenedTokenizer:
    """An encoder's tokenizer, or a message that says why the encoder or its tokenizer cannot be read."""

    tokenizer: PreTrainedTokenizerBase | None
    error: str | None = None


def open_tokenizer(encoder: Path) -> OpenedTokenizer:
    """Reads an encoder's headers and tokenizer, but not its weights."""
    try:
        return OpenedTokenizer(tokenizer_of(open_llm(encoder)))
    except Exception as error:  # kept as text, because the exception would keep the file open
        return OpenedTokenizer(None, message_for(encoder, error))


def message_for(path: Path, error: Exception) -> str:
    """A message for any error raised while reading `path`, ours or a library's."""
    if isinstance(error, LLM4GENError):
        return str(error)
    return f"{path.name} cannot be read ({words_of(error)}). Download it again."


TOKENIZERS = FileCache(open_tokenizer, limit=2)
