"""The token meter: how many tokens a prompt has for CLIP and for the LLM, and which part of the text is cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import folder_paths
import torch
from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
from transformers import PreTrainedTokenizerBase

from ...models.errors import UnreadableText
from ...models.recipe import Recipe
from ...models.tokens import text_cut_off, tokenize_for_llm
from .. import folders
from ..fused_clip import CLIP_L
from ..prompt import EMBEDDING_LABEL, weighted_text
from ..tokenizers import TOKENIZERS, host_tokenizer
from . import inventory

CLIP_LIMIT = 75  # of CLIP's 77 tokens, two are the start and the end token


class QuietTokenizer(SDTokenizer):
    """ComfyUI's CLIP tokenizer without its warning about missing embeddings: a name is incomplete while it is typed."""

    def _try_get_embedding(self, *args):
        found, *rest = super()._try_get_embedding(*args)
        return (torch.empty(0, self.embedding_size) if found is None else found, *rest)


@cache
def clip_tokenizer() -> SD1Tokenizer:
    places = folder_paths.get_folder_paths("embeddings")
    return SD1Tokenizer(embedding_directory=places, tokenizer=QuietTokenizer)


def count(text: str, llm_text: str | None, encoder: str | None, adapter: str | None) -> dict[str, Any]:
    """Tokens, limits and the text that is cut off, for both halves, as JSON.

    llm_text: another text for the LLM; None: the same text.
    encoder, adapter: names in the drop-downs. In place of a file that is not listed, the published one is assumed; if
    a file cannot be read, a note says so as well.

    Not thread-safe.
    Raises: UnreadableText.
    """
    tokenizer, encoder_error = tokenizer_for(encoder)
    recipe, adapter_error = recipe_for(adapter)
    answer: dict[str, Any] = {
        "clip": count_clip(text),
        "llm": count_llm(text if llm_text is None else llm_text, tokenizer, recipe),
    }
    errors = [error for error in (encoder_error, adapter_error) if error]
    return {**answer, "note": " ".join(errors)} if errors else answer


def tokenizer_for(encoder: str | None) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer to count with, and a message if the encoder's own cannot be read."""
    path = folders.find(folders.ENCODERS, encoder)
    if path is None:
        return host_tokenizer(), None
    opened = TOKENIZERS(path)
    if opened.tokenizer is not None:
        return opened.tokenizer, None
    return host_tokenizer(), folders.without_folders(opened.error or "")


def recipe_for(adapter: str | None) -> tuple[Recipe, str | None]:
    """The recipe to count with, and a message if the adapter cannot be read."""
    path = folders.find(folders.ADAPTERS, adapter)
    if path is None:
        return Recipe(), None
    found = inventory.ADAPTERS(path)
    return found.recipe or Recipe(), found.error


@contextmanager
def errors_of_comfyui() -> Iterator[None]:
    """Turns any error of ComfyUI's tokenizer into an UnreadableText.

    It fails on some texts, such as `embedding:` without a name, or a thousand parentheses.
    """
    try:
        yield
    except Exception as error:
        raise UnreadableText(
            f"ComfyUI itself fails at this text ({type(error).__name__}). Look at its parentheses and embeddings."
        ) from error


def count_clip(text: str) -> dict[str, Any]:
    """Counts with ComfyUI's own tokenizer, which never divides a short word, or a part with its own emphasis,
    between two chunks.

    Raises: UnreadableText.
    """
    with errors_of_comfyui():
        chunks = clip_tokenizer().tokenize_with_weights(text, return_word_ids=True)[CLIP_L]
        plain = weighted_text(text).text
    tokens = [[token for token, _, word in chunk if word] for chunk in chunks]
    lost = [token for chunk in tokens[1:] for token in chunk]
    lost_text = clip_tokenizer().decode([token for token in lost if isinstance(token, int)])
    cut = (original_end(plain, lost_text) or EMBEDDING_LABEL) if lost else ""
    return {"tokens": sum(map(len, tokens)), "limit": CLIP_LIMIT, "cut": cut}


def count_llm(text: str, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> dict[str, Any]:
    """Raises: UnreadableText."""
    with errors_of_comfyui():
        plain = weighted_text(text).text
    tokens = tokenize_for_llm(tokenizer, plain, recipe)
    cut = text_cut_off(tokenizer, plain, recipe) if tokens.dropped else ""
    return {"tokens": tokens.total, "limit": recipe.tokens, "cut": cut}


def original_end(text: str, lost: str) -> str:
    """The end of `text` that equals `lost` ignoring case and spaces; `lost` itself if there is none.

    CLIP's tokenizer decodes to lower case and with other spaces than the user wrote.
    """
    lost = lost.lstrip("\N{REPLACEMENT CHARACTER}").strip()  # the rest of a letter that was cut in two
    wanted = re.sub(r"\s", "", lost).casefold()
    letters = [
        (letter, index)
        for index, character in enumerate(text)
        if not character.isspace()
        for letter in character.casefold()
    ]
    end = letters[len(letters) - len(wanted) :] if 0 < len(wanted) <= len(letters) else []
    if not end or "".join(letter for letter, _ in end) != wanted:
        return lost
    return text[end[0][1] :].rstrip()
