"""How an adapter wants its LLM fed: prompt template, number of tokens, padding, layer.

The recipe is a property of the adapter, because the adapter was trained with it. A safetensors adapter may carry its
recipe as JSON in the metadata entry `llm4gen`, for example
`{"template": "pre {text}", "tokens": 256, "padding": "keep", "layer": -1, "heads": 8}`.
A file without one, such as the published `projector.pth`, gets the published values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from .errors import WrongRecipe

METADATA_KEY = "llm4gen"


@dataclass(frozen=True)
class Recipe:
    """How the LLM is fed. The defaults are the published values (LLM4GEN's inference script).

    template: the LLM's prompt; `{text}` stands for the user's text, `{system}` for the system text.
    system:   the system text of an instruction-tuned LLM.
    tokens:   length of the LLM's sequence; shorter prompts are padded with 0, longer ones are cut at the end.
    padding:  `keep` gives the adapter the states of the padded positions too, `drop` leaves them out.
    layer:    which hidden state the adapter gets: 0 is the embeddings, i the state after block i, -1 the last one,
              after the final norm.
    heads:    the adapter's attention heads, which the shapes of its tensors do not tell.
    """

    template: str = "pre {text}"
    system: str = ""
    tokens: int = 256
    padding: str = "keep"
    layer: int = -1
    heads: int = 8

    def __post_init__(self) -> None:
        if "{text}" not in self.template:
            raise WrongRecipe(
                f"The adapter's template {self.template!r} has no \"{{text}}\" for the user's prompt."
            )
        if ("{system}" in self.template) != bool(self.system) or "{text}" in self.system:
            raise WrongRecipe(
                f"The adapter's system text {self.system!r} does not fit its template {self.template!r}: "
                '"{system}" stands for it in the template, and "{text}" may stand in the template only.'
            )
        if self.padding not in ("keep", "drop"):
            raise WrongRecipe(f'The adapter\'s padding is {self.padding!r}; it can be "keep" or "drop".')
        if not 1 <= self.tokens <= 8192:
            raise WrongRecipe(f"The adapter asks for {self.tokens} LLM tokens; 1 to 8192 are possible.")
        if self.heads < 1:
            raise WrongRecipe(f"The adapter names {self.heads} attention heads; it needs at least 1.")

    @property
    def prompt_template(self) -> str:
        """The template with the system text filled in."""
        return self.template.replace("{system}", self.system)

    def prompt(self, text: str) -> str:
        """The LLM's prompt for a user's text."""
        return self.prompt_template.replace("{text}", text)

    def weights_in_prompt(self, weights: Sequence[float]) -> list[float]:
        """A weight for each character of the user's text → one for each of `prompt`: 1 for the template's own."""
        first, *others = self.prompt_template.split("{text}")
        result = [1.0] * len(first)
        for other in others:
            result += [*weights, *[1.0] * len(other)]
        return result


def recipe_metadata(recipe: Recipe) -> dict[str, str]:
    """The metadata that `recipe_from_metadata` reads back."""
    return {METADATA_KEY: json.dumps(asdict(recipe))}


def recipe_from_metadata(metadata: Mapping[str, str]) -> Recipe:
    """Reads a recipe from the metadata of a safetensors file.

    Raises: WrongRecipe if it is not JSON, has unknown entries, or values of the wrong type.
    """
    if METADATA_KEY not in metadata:
        return Recipe()
    try:
        entries = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise WrongRecipe(f"The adapter's metadata entry {METADATA_KEY!r} is not JSON: {error}.") from error
    known = {field.name: type(field.default) for field in fields(Recipe)}
    if not isinstance(entries, dict) or entries.keys() - known.keys():
        raise WrongRecipe(
            f"The adapter's recipe is {entries!r}; the known entries are {', '.join(known)}. "
            "The adapter may need a newer version of this pack."
        )
    for name, value in entries.items():
        if type(value) is not known[name]:
            raise WrongRecipe(f"The adapter's recipe has {name}={value!r}; {known[name].__name__} is needed.")
    return Recipe(**entries)
