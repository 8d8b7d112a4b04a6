"""A user's text → the token ids that an LLM reads, with a weight for each, as an adapter's recipe asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .encoders.rows import PAD
from .errors import MissingTokenizer, words_of
from .files.formats import TOKENIZER_FILE, has_tokenizer, is_gguf
from .files.texts import JSON_STARTS, refuse_text
from .recipe import Recipe

# A published tokenizer may have a few tokens without an embedding, added for other uses (Gemma 3 1B: one, for
# pictures), and an embedding rows without a token (Phi-2: 50295 tokens, 51200 rows; DeepSeek 7B: 100015 and 102400).
MOST_WITHOUT_EMBEDDING = 16
MOST_ROWS_PER_TOKEN = 1.03


def load_tokenizer(place: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """Reads a tokenizer from a folder or a `.gguf` file, without network and without code from there.

    vocabulary: rows of the encoder's token embedding.
    Raises: MissingTokenizer if the place holds none or a damaged one, or one that belongs to another model;
    UnreadableFile if a web page or the like lies in its place.
    """
    inside = {"gguf_file": place.name} if is_gguf(place) else {}
    if not inside and not has_tokenizer(place):
        raise MissingTokenizer(
            f"{place} holds no tokenizer ({TOKENIZER_FILE}). "
            "Put the tokenizer files of the encoder beside its weights."
        )
    if not inside:
        refuse_text(place / TOKENIZER_FILE, *JSON_STARTS)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(place.parent if inside else place), local_files_only=True, trust_remote_code=False, **inside
        )
    except Exception as error:  # a damaged file can make the library raise any of them
        if inside:
            advice = f"Put the encoder in a folder of its own with its {TOKENIZER_FILE}."
        else:
            advice = "Download its files again, or remove them to use ComfyUI's own T5 tokenizer."
        raise MissingTokenizer(
            f"The tokenizer in {place} cannot be read ({words_of(error)}). {advice}"
        ) from error
    added = sum(token >= vocabulary for token in tokenizer.added_tokens_decoder)
    if not belong_together(len(tokenizer), vocabulary, added):
        raise MissingTokenizer(
            f"The tokenizer in {place} has {len(tokenizer)} tokens, but the encoder has {vocabulary} embeddings: they "
            "do not belong together. Put the encoder in a folder of its own with its config.json and its own "
            "tokenizer files."
        )
    return tokenizer


def belong_together(tokens: int, rows: int, added: int = 0) -> bool:
    """Whether a tokenizer and an embedding can be of one model, by their sizes.

    tokens: all tokens of the tokenizer.
    rows:   of the token embedding.
    added:  how many tokens without an embedding were added to the tokenizer's own vocabulary.
    """
    return tokens - rows <= added <= MOST_WITHOUT_EMBEDDING and rows <= MOST_ROWS_PER_TOKEN * tokens


@dataclass(frozen=True)
class Tokens:
    """The tokens of one prompt, at most as many as the recipe's length.

    ids, weights: the token ids, and the prompt weight of each.
    total:        number of tokens before the cut, with the template's and the end token.
    dropped:      number of tokens of the user's text that did not fit.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    total: int
    dropped: int


def tokenize_for_llm(
    tokenizer: PreTrainedTokenizerBase, text: str, recipe: Recipe, weights: Sequence[float] = ()
) -> Tokens:
    """Fills the recipe's template, tokenizes it, and cuts it to the recipe's length.

    As published, the cut comes after the tokenizer, so that a long prompt also loses its end token `</s>`.

    weights: the prompt weight of each character of the text (ComfyUI's emphasis); none: all are 1. A token gets the
             weight of its first character that is not a space.
    """
    prompt = recipe.prompt(text)
    is_weighted = any(weight != 1.0 for weight in weights)
    encoded = tokenizer(prompt, verbose=False, return_offsets_mapping=is_weighted)
    ids = encoded["input_ids"] or [PAD]
    token_weights = [1.0] * len(ids)
    if is_weighted:
        of_character = recipe.weights_in_prompt(weights)
        for index, (start, end) in enumerate(encoded["offset_mapping"]):
            if start < end:
                token_weights[index] = of_character[first_visible(prompt, start, end)]
    # Losing the end token loses none of the user's text.
    without_end = len(ids) - (ids[-1] == tokenizer.eos_token_id)
    return Tokens(
        tuple(ids[: recipe.tokens]),
        tuple(token_weights[: recipe.tokens]),
        total=len(ids),
        dropped=max(0, without_end - recipe.tokens),
    )


def first_visible(text: str, start: int, end: int) -> int:
    """The index of the first character in text[start:end] that is not a space; `start` if there is none."""
    return next((index for index in range(start, end) if not text[index].isspace()), start)


def text_cut_off(tokenizer: PreTrainedTokenizerBase, text: str, recipe: Recipe) -> str:
    """The end of a user's text that does not fit into the recipe's length; empty if all of it fits."""
    encoded = tokenizer(recipe.prompt(text), verbose=False, return_offsets_mapping=True)
    starts = [start for start, end in encoded["offset_mapping"][recipe.tokens :] if start < end]
    if not starts:
        return ""
    before, _, _ = recipe.prompt_template.partition("{text}")
    return text[max(0, starts[0] - len(before)) :].strip()
