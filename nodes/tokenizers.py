"""Which tokenizer an encoder is read with: its own, or the T5 tokenizer that ComfyUI ships."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..models.errors import LLM4GENError
from ..models.llm import load_tokenizer
from ..models.source import Source, open_source
from . import folders
from .remembered import Remembered

T5_VOCABULARY = 32128  # of every published T5 v1.1


def tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """Raises: MissingTokenizer."""
    place = folders.tokenizer_place(source.path, source.is_t5)
    return load_tokenizer(place, source.config.vocabulary)


@cache
def host_tokenizer() -> PreTrainedTokenizerBase:
    """T5's. Raises: MissingTokenizer."""
    return load_tokenizer(folders.host_t5_tokenizer(), T5_VOCABULARY)


@dataclass(frozen=True)
class Opened:
    """An encoder's tokenizer, or what is wrong with one of the two."""

    tokenizer: PreTrainedTokenizerBase | None
    error: str | None = None


def open_tokenizer(encoder: Path) -> Opened:
    """Without the encoder's weights."""
    try:
        return Opened(tokenizer_of(open_source(encoder)))
    except Exception as error:  # as text: the error itself would hold on to the file
        return Opened(None, said_of(encoder, error))


def said_of(path: Path, error: Exception) -> str:
    """What an error says of a file, also where a damaged one makes another of it than ours."""
    if isinstance(error, LLM4GENError):
        return str(error)
    return f"{path.name} cannot be read ({type(error).__name__}: {error}). Download it again."


OPENED = Remembered(open_tokenizer, most=2)
