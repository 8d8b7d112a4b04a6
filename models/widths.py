"""How wide each tensor of a model is kept, in memory and in a file, when its matrices have one dtype."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# What the user may have matrices kept as.
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}


def kept_as(blueprint: nn.Module, matrices: torch.dtype) -> dict[str, torch.dtype]:
    """By name, the dtype of each of a model's tensors.

    Only the matrices of linear layers are as narrow as that, and the words' embedding, but for 8 bits: what is
    lost there, no layer after it makes good. All else is computed with in fp32, weighs nothing, and is kept in it.
    blueprint: of plain layers; an encoder's says where its words are (`words`).
    """
    dtypes = dict.fromkeys(blueprint.state_dict(), torch.float32)
    dtypes |= dict.fromkeys(products(blueprint), matrices)
    if hasattr(blueprint, "words"):
        dtypes[blueprint.words] = torch.bfloat16 if matrices.itemsize == 1 else matrices
    return dtypes


def products(blueprint: nn.Module) -> list[str]:
    """Names of the matrices that states are multiplied with."""
    return [f"{name}.weight" for name, part in blueprint.named_modules() if isinstance(part, nn.Linear)]


def own_dtype(blueprint: nn.Module, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> torch.dtype:
    """That of a file's matrices, or of the words where a model has none; one that the host does not cast from
    becomes the next wider.

    names: the file's → the model's.
    """
    asked = [*products(blueprint), *([blueprint.words] if hasattr(blueprint, "words") else [])]
    theirs = {ours: theirs for theirs, ours in names.items()}
    dtype = tensors[theirs[asked[0]]].dtype
    if dtype in DTYPES.values():
        return dtype
    return torch.float32 if dtype.itemsize > 2 else torch.bfloat16
