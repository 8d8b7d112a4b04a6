"""Tokens as words that a reader knows: each half's, by its own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from .attention_map import Word
from .fused_clip import FusedCLIP
from .prompt import words_of

HALF_A_LETTER = "\N{REPLACEMENT CHARACTER}"
LONGEST_LETTER = 4  # tokens: UTF-8 has so many bytes for one
LONGEST = 24  # letters shown of one token


def of_llm(fused: FusedCLIP, text: str) -> list[Word]:
    """What the LLM reads: the user's words, and as marks what the template adds.

    The tokenizer spreads weights on the user's letters alone, and so tells which tokens are theirs.
    """
    llm, words = fused.fusion.llm.llm, words_of(text)
    tokens = llm.tokenize(words.text, fused.fusion.adapter.recipe, [0.0] * len(words.text))
    shown = pieces(tokens.ids, partial(llm.tokenizer.decode, clean_up_tokenization_spaces=False))
    return [Word(piece, mark=weight == 1.0) for piece, weight in zip(shown, tokens.weights, strict=True)]


def of_clip(fused: FusedCLIP, tokens: Sequence[tuple]) -> list[Word]:
    """CLIP's tokens (id, weight, number of the word) up to the end mark; the padding behind it is left out."""
    last = max((place for place, (_, _, word) in enumerate(tokens) if word), default=0)
    inner = [token for token, _, _ in tokens[1 : last + 1]]
    shown = pieces(inner, partial(fused.tokenizer.decode, skip_special_tokens=False))
    return [Word("<start>", mark=True), *map(Word, shown), Word("<end>", mark=True)]


def pieces(ids: Sequence[int | Tensor], decode: Callable[[list[int]], str]) -> list[str]:
    """A text for each token. A letter that is several tokens is numbered: `青 1/3`, `青 2/3`, `青 3/3`.

    A tensor among the ids is a vector of a textual inversion.
    """
    texts, part = [], []
    for place, token in enumerate(ids):
        if isinstance(token, Tensor):
            texts.append("(embedding)")
            continue
        part.append(token)
        text = decode(part)
        ends = place + 1 == len(ids) or isinstance(ids[place + 1], Tensor)
        if HALF_A_LETTER in text and len(part) < LONGEST_LETTER and not ends:
            continue
        parts = [f" {i + 1}/{len(part)}" for i in range(len(part))] if len(part) > 1 else [""]
        texts += [readable(text) + number for number in parts]
        part = []
    return texts


def readable(text: str) -> str:
    text = text.strip(" ") or "(space)"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
