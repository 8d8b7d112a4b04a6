"""Tokens as words that a reader knows: each half's, by its own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest

from torch import Tensor

from ..models.llm import LLM
from ..models.recipe import Recipe
from .attention_map import Word
from .fused_clip import FusedCLIP
from .prompt import VECTOR, words_of

HALF_A_LETTER = "\N{REPLACEMENT CHARACTER}"
LONGEST_LETTER = 4  # tokens: UTF-8 has so many bytes for one
LONGEST = 24  # letters shown of one token


def of_llm(fused: FusedCLIP, text: str) -> list[Word]:
    """What the LLM reads: the user's words, and as marks what the template adds."""
    llm, recipe, words = fused.fusion.llm.llm, fused.fusion.adapter.recipe, words_of(text).text
    ids = llm.tokenize(words, recipe).ids
    shown = pieces(ids, partial(llm.tokenizer.decode, clean_up_tokenization_spaces=False))
    return [
        Word(piece, mark=not own)
        for piece, own in zip_longest(shown, of_the_users(llm, recipe, words)[: len(ids)], fillvalue=False)
    ]


def of_the_users(llm: LLM, recipe: Recipe, words: str) -> list[bool]:
    """Which of the prompt's tokens hold something that the user wrote, if only a part of it.

    A token at the border may hold letters of both, as `.a` does in a template that ends in a full stop: it is the
    user's. Spaces decide only on tokens that hold nothing else.
    """
    prompt, theirs = recipe.prompt(words), [weight == 0 for weight in recipe.spread([0.0] * len(words))]
    found = []
    for start, end in llm.tokenizer(prompt, verbose=False, return_offsets_mapping=True)["offset_mapping"]:
        inked = [place for place in range(start, end) if not prompt[place].isspace()]
        found.append(any(theirs[place] for place in inked or range(start, end)))
    return found


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
            texts.append(VECTOR)
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
