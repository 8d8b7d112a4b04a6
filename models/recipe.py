"""How an adapter wants its LLM fed. A property of the adapter, since it was trained that way.

A safetensors adapter may carry its recipe as JSON in the metadata entry `llm4gen`, for example
`{"template": "pre {text}", "tokens": 256, "padding": "keep", "layer": -1, "heads": 8}`.
A file without one (the published `projector.pth`) gets the published values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from .errors import WrongRecipe

METADATA_KEY = "llm4gen"


@dataclass(frozen=True)
class Recipe:
    """The published values (inference script of LLM4GEN), unless an adapter says otherwise.

    template: the LLM's prompt; `{text}` stands for the user's words, `{system}` for the system text.
    system:   what the LLM is told beforehand.
    tokens:   length of the LLM sequence, padded with 0 or cut at the end.
    padding:  `keep` hands the states of the padded positions to the adapter as well, `drop` leaves them out.
    layer:    index into the LLM's hidden states: 0 the embeddings, i the state after block i, -1 the last,
              after the final norm.
    heads:    attention heads of the adapter: its tensors' shapes do not tell.
    """

    template: str = "pre {text}"
    system: str = ""
    tokens: int = 256
    padding: str = "keep"
    layer: int = -1
    heads: int = 8

    def __post_init__(self):
        if "{text}" not in self.template:
            raise WrongRecipe(f'The adapter\'s template {self.template!r} has no "{{text}}" for the prompt.')
        if ("{system}" in self.template) != bool(self.system) or "{text}" in self.system:
            raise WrongRecipe(
                f"The adapter's system text {self.system!r} does not fit its template {self.template!r}: "
                '"{system}" in the template stands for it, and "{text}" has its place in the template alone.'
            )
        if self.padding not in ("keep", "drop"):
            raise WrongRecipe(f'The adapter\'s padding is {self.padding!r}; "keep" and "drop" are known.')
        if not 1 <= self.tokens <= 8192:
            raise WrongRecipe(f"The adapter asks for {self.tokens} LLM tokens; 1 to 8192 are possible.")
        if self.heads < 1:
            raise WrongRecipe(f"The adapter names {self.heads} attention heads; at least 1 is needed.")

    def spread(self, weights: Sequence[float]) -> list[float]:
        """The weights of a user's characters → those of the prompt's: 1 for what the template adds."""
        first, *others = self.around.split("{text}")
        spread = [1.0] * len(first)
        for other in others:
            spread += [*weights, *[1.0] * len(other)]
        return spread

    def prompt(self, text: str) -> str:
        """The LLM's prompt for a user's words."""
        return self.around.replace("{text}", text)

    @property
    def around(self) -> str:
        """The template with the system text in its place."""
        return self.template.replace("{system}", self.system)


def recipe_metadata(recipe: Recipe) -> dict[str, str]:
    """What `recipe_from_metadata` reads back."""
    return {METADATA_KEY: json.dumps(asdict(recipe))}


def recipe_from_metadata(metadata: Mapping[str, str]) -> Recipe:
    """Reads a recipe from safetensors metadata.

    Raises: WrongRecipe for JSON that is no recipe, for unknown entries, and for values of the wrong type.
    """
    if METADATA_KEY not in metadata:
        return Recipe()
    try:
        entries = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise WrongRecipe(f"The adapter's metadata {METADATA_KEY!r} is no JSON: {error}.") from error
    known = {field.name: type(field.default) for field in fields(Recipe)}
    if not isinstance(entries, dict) or entries.keys() - known.keys():
        raise WrongRecipe(
            f"The adapter's recipe is {entries!r}; known entries are {', '.join(known)}. "
            "It may need a newer version of this pack."
        )
    for name, value in entries.items():
        if type(value) is not known[name]:
            raise WrongRecipe(
                f"The adapter's recipe has {name}={value!r}; {known[name].__name__} was expected."
            )
    return Recipe(**entries)
