"""Token ids as text that a person can read: a label for each token of either half."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...models.recipe import Recipe
from ...models.tokens import tokenize_for_llm
from ..prompt import EMBEDDING_LABEL, weighted_text
from .attention_map import Label

INCOMPLETE_LETTER = "\N{REPLACEMENT CHARACTER}"
MOST_TOKENS_OF_A_LETTER = 4  # UTF-8 writes a letter in up to four bytes
MOST_LETTERS = 24  # shown of one token


def llm_labels(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, text: str) -> list[Label]:
    """The LLM's tokens of a prompt; those that the template adds are special."""
    plain = weighted_text(text).text
    ids = tokenize_for_llm(tokenizer, plain, recipe).ids
    texts = token_texts(ids, partial(tokenizer.decode, clean_up_tokenization_spaces=False))
    is_users = users_tokens(tokenizer, recipe, plain)[: len(ids)]
    # The empty prompt of an empty template is a token of padding, which stands for none of the text.
    is_users += [False] * (len(texts) - len(is_users))
    return [Label(label, is_special=not own) for label, own in zip(texts, is_users, strict=True)]


def users_tokens(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, text: str) -> list[bool]:
    """For each token of the LLM's prompt, whether any part of it comes from the user's text.

    A token at the border can hold letters of both, as `.a` does after a template that ends in a full stop; it counts as
    the user's. Spaces decide only on tokens that hold nothing else.
    """
    prompt = recipe.prompt(text)
    is_users = [weight == 0 for weight in recipe.weights_in_prompt([0.0] * len(text))]
    result = []
    for start, end in tokenizer(prompt, verbose=False, return_offsets_mapping=True)["offset_mapping"]:
        visible = [index for index in range(start, end) if not prompt[index].isspace()]
        result.append(any(is_users[index] for index in visible or range(start, end)))
    return result


def clip_labels(tokens: Sequence[tuple[Any, ...]], decode: Callable[..., str]) -> list[Label]:
    """CLIP's tokens (id, weight, number of the word) up to the end token, without the padding after it."""
    last = max((index for index, (_, _, word) in enumerate(tokens) if word), default=0)
    ids = [token for token, _, _ in tokens[1 : last + 1]]
    texts = token_texts(ids, partial(decode, skip_special_tokens=False))
    return [Label("<start>", is_special=True), *map(Label, texts), Label("<end>", is_special=True)]


def token_texts(ids: Sequence[int | Tensor], decode: Callable[[list[int]], str]) -> list[str]:
    """A text for each token. A letter that takes several tokens is numbered: `青 1/3`, `青 2/3`, `青 3/3`.

    A tensor among the ids is a vector of a textual inversion.
    """
    texts: list[str] = []
    pending: list[int] = []  # the tokens of a letter that is not complete yet
    for index, token in enumerate(ids):
        if isinstance(token, Tensor):
            texts.append(EMBEDDING_LABEL)
            continue
        pending.append(token)
        text = decode(pending)
        is_last = index + 1 == len(ids) or isinstance(ids[index + 1], Tensor)
        if INCOMPLETE_LETTER in text and len(pending) < MOST_TOKENS_OF_A_LETTER and not is_last:
            continue
        count = len(pending)
        numbers = [f" {number}/{count}" for number in range(1, count + 1)] if count > 1 else [""]
        texts += [readable(text) + number for number in numbers]
        pending = []
    return texts


def readable(text: str) -> str:
    """A token's text without spaces around it, and not too long for a label."""
    text = text.strip(" ") or "(space)"
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
