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
    except LLM4GENError as error:  # as text: the error itself would hold on to the file
        return Opened(None, str(error))


OPENED = Remembered(open_tokenizer, most=2)
