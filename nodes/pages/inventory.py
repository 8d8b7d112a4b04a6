"""Which encoders and adapters lie in the model folders, whether they can be used, and which of them fit together.

Only the headers of files are read, and messages name no folder of this machine.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...models.checkpoints.adapter import recognise_adapter, trained_with, training_of
from ...models.checkpoints.checkpoint_kind import KINDS
from ...models.checkpoints.same_llm import LLMFacts, doubt, trained_llm
from ...models.errors import IncompleteCheckpoint, UnknownCheckpoint, UnreadableFile
from ...models.files.folder import weight_files
from ...models.files.formats import is_gguf
from ...models.files.pickles import is_legacy_pickle
from ...models.files.texts import is_online_only
from ...models.files.weights import open_weights
from ...models.llm import LLMFile, open_llm
from ...models.recipe import Recipe
from .. import folders
from ..file_cache import FileCache
from ..tokenizers import message_for, tokenizer_of

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
CACHED_FILES = 1000
LEGACY_PICKLE_BYTES = 64 << 20  # up to this size, a file that has no header is read whole

OTHER = "other"  # the kind of a file that this pack does not read, such as another model's text encoder
INSIDE, OWN, COMFYUI = "in its file", "its own", "ComfyUI's"  # where an encoder's tokenizer is


@dataclass(frozen=True)
class Encoder:
    """What is known of an encoder.

    kind:   the architecture, or OTHER; then `reason` says why the file is not an encoder for this pack.
    llm:    what tells whether an adapter was trained with it.
    error:  what is wrong with a file that should be an encoder.
    """

    kind: str = OTHER
    width: int | None = None
    layers: int | None = None
    dtype: str | None = None
    tokenizer: str | None = None
    llm: LLMFacts | None = None
    error: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Adapter:
    """What is known of a Cross-Adapter.

    trained_with: see `models.checkpoints.adapter.trained_with`.
    llm:          the one that it was trained with, if it says so.
    error:        what is wrong with the file.
    """

    clip_width: int | None = None
    llm_width: int | None = None
    recipe: Recipe | None = None
    dtype: str | None = None
    trained_with: str | None = None
    llm: LLMFacts | None = None
    error: str | None = None


def look_at_encoder(path: Path) -> Encoder:
    """Reads an encoder's headers. Errors become part of the answer."""
    try:
        check_header(path)
        file = open_llm(path)
    except (UnknownCheckpoint, IncompleteCheckpoint) as error:
        return Encoder(reason=folders.without_folders(str(error)).partition(". ")[0] + ".")
    except Exception as error:
        return Encoder(error=safe_message(path, error))
    config = file.config
    found = Encoder(file.kind, config.width, config.layers, file.dtype_name, llm=file.facts)
    try:
        return replace(found, tokenizer=where_tokenizer(file))
    except Exception as error:
        return replace(found, error=safe_message(path, error))


def look_at_adapter(path: Path) -> Adapter:
    """Reads an adapter's headers. Errors become part of the answer."""
    try:
        check_header(path)
        weights = open_weights(path)
        found, recipe = recognise_adapter(weights)
    except Exception as error:
        return Adapter(error=safe_message(path, error))
    training, sizes = training_of(weights.metadata), found.config
    needed, llm = trained_with(training), trained_llm(training)
    return Adapter(sizes.clip_dim, sizes.llm_dim, recipe, weights.dtype_name, needed, llm)


def safe_message(path: Path, error: Exception) -> str:
    """An error's message that may be sent to a browser."""
    return folders.without_folders(message_for(path, error))


def check_header(path: Path) -> None:
    """Raises: UnknownCheckpoint for a file that cannot be recognised without reading gigabytes, UnreadableFile for one
    that would have to be downloaded first."""
    for file in weight_files(path):
        if is_online_only(file):
            raise UnreadableFile(
                f"{file.name} is on a cloud drive, and its content is not on this machine. Let the drive keep it here "
                "(Windows: Always keep on this device; macOS: Download Now), or put the file outside of that drive."
            )
        if is_legacy_pickle(file) and file.stat().st_size > LEGACY_PICKLE_BYTES:
            raise UnknownCheckpoint(
                f"{file.name} is in the format of torch before 1.6, which has no header. tools/convert.py makes a "
                "safetensors file of it, which has one."
            )


def where_tokenizer(file: LLMFile) -> str:
    """INSIDE, OWN or COMFYUI. Raises: MissingTokenizer."""
    place = folders.tokenizer_place(file.path, file.is_t5)
    if is_gguf(place):  # not opened: it is part of the file, and reading it takes seconds
        return INSIDE
    tokenizer_of(file)
    return COMFYUI if place == folders.host_t5_tokenizer() else OWN


ENCODERS = FileCache(look_at_encoder, CACHED_FILES)
ADAPTERS = FileCache(look_at_adapter, CACHED_FILES)


def encoders() -> dict[str, Encoder]:
    """By their names in the drop-down."""
    return {name: ENCODERS(path) for name, path in sorted(folders.listed(folders.ENCODERS).items())}


def adapters() -> dict[str, Adapter]:
    """By their names in the drop-down."""
    return {name: ADAPTERS(path) for name, path in sorted(folders.listed(folders.ADAPTERS).items())}


def fits(encoder: Encoder, adapter: Adapter) -> bool | None:
    """Whether an encoder can feed an adapter; None if one of the two cannot be used at all."""
    if encoder.width is None or encoder.layers is None or adapter.recipe is None:
        return None
    layer = adapter.recipe.layer
    return encoder.width == adapter.llm_width and -encoder.layers - 1 <= layer <= encoder.layers


def doubt_of(encoder: Encoder, adapter: Adapter) -> str | None:
    """Whether an encoder that fits may be another LLM than the adapter's. See `models.checkpoints.same_llm.doubt`."""
    return doubt(adapter.llm, encoder.llm) if encoder.llm else None


def inventory() -> dict[str, Any]:
    """Everything that is in the folders, as JSON."""
    found_encoders, found_adapters = encoders(), adapters()
    pairs = [
        {"encoder": name, "adapter": other, "fits": fit, "doubt": doubt_of(encoder, adapter)}
        for name, encoder in found_encoders.items()
        for other, adapter in found_adapters.items()
        if (fit := fits(encoder, adapter)) is not None
    ]
    return {
        "encoders": [{"name": name, **asdict(encoder)} for name, encoder in found_encoders.items()],
        "adapters": [{"name": name, **asdict(adapter)} for name, adapter in found_adapters.items()],
        "pairs": pairs,
        "kinds": KINDS,
        "advice": {key: folders.ADVICE[key] for key in (folders.ENCODERS, folders.ADAPTERS)},
        "version": version(),
    }


def version() -> str:
    """The pack's version."""
    match = re.search(r'^version = "(.*)"$', PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return match[1]
