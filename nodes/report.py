"""What is there: the encoders and adapters that lie in the folders, and which of them fit each other.

Of files only headers are read, and messages name no folder of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from ..models.checkpoint import recognise_adapter
from ..models.errors import IncompleteCheckpoint, UnknownCheckpoint
from ..models.formats import is_gguf
from ..models.recipe import Recipe
from ..models.source import Source, open_source
from ..models.weights import is_headless, open_weights
from . import folders
from .remembered import Remembered
from .tokenizers import said_of, tokenizer_of

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
MOST = 1000  # files of a folder that are remembered
WHOLE = 64 << 20  # bytes of a file without a header that is read to look at it

OTHER = "other"
IN_FILE, OWN, HOSTS = "in its file", "its own", "ComfyUI's"  # where a tokenizer is


@dataclass(frozen=True)
class Encoder:
    """kind: of model, or `OTHER` for what is not ours to read, such as other models' text encoders; reason says what
    it lacks. error: what is wrong with a file that should be ours."""

    kind: str = OTHER
    width: int | None = None
    layers: int | None = None
    dtype: str | None = None
    tokenizer: str | None = None
    error: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Adapter:
    clip_width: int | None = None
    llm_width: int | None = None
    recipe: Recipe | None = None
    dtype: str | None = None
    error: str | None = None


Facts = TypeVar("Facts", Encoder, Adapter)


def told(look: Callable[[Path], Facts], unknown: Facts) -> Callable[[Path], Facts]:
    """Tells errors instead of raising them."""

    def tell(path: Path) -> Facts:
        try:
            return look(path)
        except Exception as error:
            return replace(unknown, error=folders.without_places(said_of(path, error)))

    return tell


def check_header(path: Path) -> None:
    """Raises: UnknownCheckpoint for what cannot be looked at without reading gigabytes."""
    if is_headless(path) and path.stat().st_size > WHOLE:
        raise UnknownCheckpoint(
            f"{path.name} is in torch's format from before 1.6, which has no header to look at. tools/convert.py "
            "makes a file that has."
        )


def look_at_encoder(path: Path) -> Encoder:
    """Raises: UnreadableFile, MissingPackage."""
    try:
        check_header(path)
        source = open_source(path)
    except (UnknownCheckpoint, IncompleteCheckpoint) as error:
        return Encoder(reason=folders.without_places(str(error)).partition(". ")[0] + ".")
    kind = "t5" if source.is_t5 else source.config.transformers.model_type
    found = Encoder(kind, source.config.width, source.config.layers, source.stored)
    return told(lambda _: replace(found, tokenizer=where_tokenizer(source)), found)(path)


def where_tokenizer(source: Source) -> str:
    """Raises: MissingTokenizer."""
    place = folders.tokenizer_place(source.path, source.is_t5)
    if is_gguf(place):  # takes seconds to read, and is part of the file
        return IN_FILE
    tokenizer_of(source)
    return HOSTS if place == folders.host_t5_tokenizer() else OWN


def look_at_adapter(path: Path) -> Adapter:
    """Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint, WrongRecipe."""
    check_header(path)
    weights = open_weights(path)
    config, recipe, _ = recognise_adapter(weights)
    return Adapter(config.clip_dim, config.llm_dim, recipe, weights.stored)


ENCODERS = Remembered(told(look_at_encoder, Encoder()), MOST)
ADAPTERS = Remembered(told(look_at_adapter, Adapter()), MOST)


def encoders() -> dict[str, Encoder]:
    """By their names in the drop-down."""
    return {name: ENCODERS(path) for name, path in sorted(folders.listed(folders.ENCODERS).items())}


def adapters() -> dict[str, Adapter]:
    """By their names in the drop-down."""
    return {name: ADAPTERS(path) for name, path in sorted(folders.listed(folders.ADAPTERS).items())}


def fits(encoder: Encoder, adapter: Adapter) -> bool | None:
    """Whether an adapter can be fed by an encoder; None where one of them is not known."""
    if encoder.width is None or adapter.recipe is None:
        return None
    layer = adapter.recipe.layer
    return encoder.width == adapter.llm_width and -encoder.layers - 1 <= layer <= encoder.layers


def report() -> dict:
    """As JSON."""
    found, theirs = encoders(), adapters()
    pairs = [
        {"encoder": name, "adapter": other, "fits": fit}
        for name, encoder in found.items()
        for other, adapter in theirs.items()
        if (fit := fits(encoder, adapter)) is not None
    ]
    return {
        "encoders": [{"name": name, **asdict(encoder)} for name, encoder in found.items()],
        "adapters": [{"name": name, **asdict(adapter)} for name, adapter in theirs.items()],
        "pairs": pairs,
        "advice": {key: folders.ADVICE[key] for key in (folders.ENCODERS, folders.ADAPTERS)},
        "version": version(),
    }


def version() -> str:
    """The pack's."""
    return re.search(r'^version = "(.*)"$', PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE)[1]
