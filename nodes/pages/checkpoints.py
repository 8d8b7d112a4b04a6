"""Which kind of UNet a checkpoint holds, so that the page can say before a run that an adapter does not fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths

from ...models.checkpoints.checkpoint_kind import KINDS, context_width
from ...models.files.texts import is_online_only
from ..file_cache import FileCache

CACHED_FILES = 1000


def width_in_header(path: Path) -> int | None:
    """The width of the UNet's context; None if it cannot be told, or only by downloading the file first."""
    return None if is_online_only(path) else context_width(path)


WIDTHS = FileCache(width_in_header, CACHED_FILES)


def kind_of(checkpoint: str) -> dict[str, Any]:
    """The width of the context and the kind's name, as JSON; both null if they cannot be told.

    checkpoint: a name in the drop-down of ComfyUI's loaders. No other is looked for, so that none can lead out of the
    model folders.
    """
    is_listed = checkpoint in folder_paths.get_filename_list("checkpoints")
    path = folder_paths.get_full_path("checkpoints", checkpoint) if is_listed else None
    width = WIDTHS(Path(path)) if path else None
    return {"width": width, "kind": KINDS.get(width) if width else None}
