"""Tells whether an LLM is the one that an adapter was trained with, as far as their files can tell.

An adapter gives nonsense with another LLM, also with one of the same width, where every shape fits. Another file of the
same LLM (fp16, fp8, `.gguf`, a folder) is right, so a file of other content proves nothing by itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

# What may be wrong with an LLM and an adapter. web/texts.js has a sentence for the page under each of these names.
OTHER_FILE, OTHER_LLM = "other_file", "other_llm"
SENTENCES = {
    OTHER_FILE: "{adapter} was trained with another file ({llm}) than {encoder}: if the two do not hold the same LLM, "
    "pictures come out wrong.",
    OTHER_LLM: "{adapter} was trained with another LLM than {encoder}: load that LLM ({llm}), or pictures come out "
    "wrong.",
}
# What an adapter's file says of its LLM beside the name. Anyone may have written it, so the kinds are checked.
KINDS: dict[str, type] = {
    **dict.fromkeys(("sha256_of_ends", "architecture"), str),
    **dict.fromkeys(("layers", "width", "mlp_dim", "vocabulary"), int),
}
T5, DECODER = "t5", "decoder"
# Up to so many rows of an embedding may stand for no token. Formats differ there: Gemma 3 4B has 262208 rows in its
# folder and 262144 in its .gguf file.
EMPTY_ROWS = 1024


@dataclass(frozen=True)
class LLMFacts:
    """What is known of an LLM, from its file or from what an adapter says of the LLM that it was trained with.

    name:           of the file or folder. Anyone may rename it, so it decides nothing.
    sha256_of_ends: see `models.llm.LLMFile.content`. It differs between files of one LLM.

    The rest is the same in every file of an LLM, or None where it is not known.
    architecture: T5 or DECODER. A finer name would depend on the format: a Mistral is a `llama` in `.gguf` files.
    mlp_dim:      the inner width of the feed-forward.
    vocabulary:   the rows of the embedding, but for EMPTY_ROWS.
    """

    name: str
    sha256_of_ends: str | None = None
    architecture: str | None = None
    layers: int | None = None
    width: int | None = None
    mlp_dim: int | None = None
    vocabulary: int | None = None

    @property
    def entry(self) -> dict[str, str | int]:
        """What an adapter's file says of the LLM that it was trained with. `trained_llm` reads it back."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def trained_llm(training: str | None) -> LLMFacts | None:
    """The LLM that an adapter was trained with; None if it does not say.

    training: a result of `adapter.read_training`.
    """
    entry = json.loads(training or "{}").get("llm")
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    known = {name: entry[name] for name, kind in KINDS.items() if type(entry.get(name)) is kind}
    return LLMFacts(entry["name"], **known)


def doubt(trained: LLMFacts | None, loaded: LLMFacts) -> str | None:
    """OTHER_LLM: the two are different for certain. OTHER_FILE: they may be. None: one file, or nothing is known."""
    if trained is None or trained.sha256_of_ends == loaded.sha256_of_ends:
        return None
    if contradict(trained, loaded):
        return OTHER_LLM
    return OTHER_FILE if trained.sha256_of_ends else None


def contradict(one: LLMFacts, other: LLMFacts) -> bool:
    """Whether no LLM can have both."""
    pairs = [
        (getattr(one, name), getattr(other, name)) for name in ("architecture", "layers", "width", "mlp_dim")
    ]
    if any(mine is not None and theirs is not None and mine != theirs for mine, theirs in pairs):
        return True
    if one.vocabulary is None or other.vocabulary is None:
        return False
    return abs(one.vocabulary - other.vocabulary) > EMPTY_ROWS
