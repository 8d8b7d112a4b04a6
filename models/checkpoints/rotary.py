"""The rotary positions of a decoder's config.json, which transformers 5 spells in another way than older versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

from ..errors import UnknownCheckpoint

OLD_TRANSFORMERS = int(transformers.__version__.split(".")[0]) < 5


def old_spelling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5's `rope_parameters` → the entries that older versions read.

    parameters: of all layers; or, as in Gemma 3, of full_attention and of sliding_attention.
    Raises: ValueError for parameters that older versions have no entries for.
    """
    if "full_attention" in parameters:
        local = dict(parameters.get("sliding_attention") or {})
        others = parameters.keys() - {"full_attention", "sliding_attention"}
        base = local.pop("rope_theta", None)
        if others or base is None or local.pop("rope_type", "default") != "default" or local:
            raise ValueError("positions of several kinds")
        return old_spelling(parameters["full_attention"]) | {"rope_local_base_freq": base}
    rest = dict(parameters)
    entries = {name: rest.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rest}
    is_scaled = rest.get("rope_type", "default") != "default"
    return entries | ({"rope_scaling": rest} if is_scaled else {})


def understand(config: Any, parameters: Mapping[str, Any], name: str) -> None:
    """Sets transformers 5's `rope_parameters` in a config of an older transformers, which ignores them.

    name: of the model's folder. Raises: UnknownCheckpoint if the older version cannot compute them.
    """
    known = type(config)()
    try:
        entries = old_spelling(parameters)
        unknown = [entry for entry in entries if not hasattr(known, entry)]
    except ValueError as error:
        unknown = [str(error)]
    if unknown:
        raise UnknownCheckpoint(
            f"{name}/config.json was written by transformers 5, and the installed transformers "
            f"{transformers.__version__} cannot compute its rotary positions ({', '.join(unknown)}). Update "
            "transformers."
        )
    for entry, value in entries.items():
        setattr(config, entry, value)
