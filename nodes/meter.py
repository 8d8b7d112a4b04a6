"""How many tokens a prompt has in either half, and which of its words no longer fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import folder_paths
import torch
from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
from transformers import PreTrainedTokenizerBase

from ..models.errors import UnreadableText
from ..models.llm import cut_words, tokenize
from ..models.recipe import Recipe
from . import folders, report
from .fused_clip import SD15
from .prompt import VECTOR, words_of
from .tokenizers import OPENED, host_tokenizer

CLIP_LIMIT = 75  # of CLIP's 77, start and end are no words


class QuietTokenizer(SDTokenizer):
    """The host's, without its warning of an embedding that is not there: one is not there while it is typed."""

    def _try_get_embedding(self, *args):
        found, *rest = super()._try_get_embedding(*args)
        return (torch.empty(0, self.embedding_size) if found is None else found, *rest)


@cache
def clip_tokenizer() -> SD1Tokenizer:
    places = folder_paths.get_folder_paths("embeddings")
    return SD1Tokenizer(embedding_directory=places, tokenizer=QuietTokenizer)


def count(text: str, llm_text: str | None, encoder: str | None, adapter: str | None) -> dict:
    """Tokens, limits and cut words, as JSON. llm_text: other words for the LLM.

    encoder, adapter: names in the drop-downs. What is not there, or cannot be read, is taken as published, and in
    the second case a note says so. For one thread at a time.
    Raises: UnreadableText.
    """
    tokenizer, wrong = tokenizer_for(encoder)
    recipe, wrong_too = recipe_for(adapter)
    answer = {
        "clip": count_clip(text),
        "llm": count_llm(text if llm_text is None else llm_text, tokenizer, recipe),
    }
    notes = " ".join(note for note in (wrong, wrong_too) if note)
    return {**answer, "note": notes} if notes else answer


def tokenizer_for(encoder: str | None) -> tuple[PreTrainedTokenizerBase, str | None]:
    """And what is wrong with the encoder's own."""
    path = folders.find(folders.ENCODERS, encoder)
    opened = OPENED(path) if path else None
    if opened and opened.tokenizer:
        return opened.tokenizer, None
    return host_tokenizer(), opened and folders.without_places(opened.error)


def recipe_for(adapter: str | None) -> tuple[Recipe, str | None]:
    """And what is wrong with the adapter."""
    path = folders.find(folders.ADAPTERS, adapter)
    found = report.ADAPTERS(path) if path else report.Adapter()
    return found.recipe or Recipe(), found.error


@contextmanager
def read_by_the_host() -> Iterator[None]:
    """Raises: UnreadableText for what it fails at, such as `embedding:` without a name, or a thousand parentheses."""
    try:
        yield
    except Exception as error:
        raise UnreadableText(
            f"ComfyUI itself fails at this text ({type(error).__name__}). Look at its parentheses and embeddings."
        ) from error


def count_clip(text: str) -> dict:
    """By the host's own rule, which keeps short words, and what has an emphasis of its own, in one chunk.

    Raises: UnreadableText.
    """
    with read_by_the_host():
        chunks = clip_tokenizer().tokenize_with_weights(text, return_word_ids=True)[SD15]
        words = words_of(text).text
    tokens = [[token for token, _, word in chunk if word] for chunk in chunks]
    lost = [token for chunk in tokens[1:] for token in chunk]
    spelt = clip_tokenizer().decode([token for token in lost if isinstance(token, int)])
    cut = (end_of(words, spelt) or VECTOR) if lost else ""
    return {"tokens": sum(map(len, tokens)), "limit": CLIP_LIMIT, "cut": cut}


def count_llm(text: str, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> dict:
    """Raises: UnreadableText."""
    with read_by_the_host():
        words = words_of(text).text
    read = tokenize(tokenizer, words, recipe)
    cut = cut_words(tokenizer, words, recipe) if read.dropped else ""
    return {"tokens": read.total, "limit": recipe.tokens, "cut": cut}


def end_of(words: str, lost: str) -> str:
    """The end of the words that a tokenizer spells as `lost`: in lower case, with other spaces. If none is, that."""
    lost = lost.lstrip("\N{REPLACEMENT CHARACTER}").strip()  # the rest of a letter that was cut in two
    spelt = re.sub(r"\s", "", lost).casefold()
    letters = [
        (letter, at) for at, each in enumerate(words) if not each.isspace() for letter in each.casefold()
    ]
    end = letters[len(letters) - len(spelt) :] if 0 < len(spelt) <= len(letters) else []
    return words[end[0][1] :].rstrip() if end and "".join(letter for letter, _ in end) == spelt else lost
