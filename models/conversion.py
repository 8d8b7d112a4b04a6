"""Weights → the same model in another dtype, for a smaller file: what is kept, how wide, and that it fits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import ADAPTER_MARK, T5_MARK, recognise_adapter, recognise_t5
from .errors import IncompleteCheckpoint, UnknownCheckpoint
from .filling import describe, find_prefix
from .formats import TOKENIZER_FILE, has_tokenizer
from .recipe import recipe_metadata
from .weights import DTYPES, Weights, in_pieces, open_weights

ENCODER_DTYPE = "bf16"  # unless another is asked for: half of fp32, and no T5's weights leave its range
HOST_TOKENIZER = "ComfyUI's T5 tokenizer"


@dataclass(frozen=True)
class Conversion:
    """What a smaller file will hold. kind: for people. dtype: one of `DTYPES`. dtypes: of the tensors, by the
    names that they have in the file and keep. tokenizer: a folder, if the encoder has one of its own."""

    weights: Weights
    kind: str
    dtype: str
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    tokenizer: Path | None = None

    @property
    def unused(self) -> list[str]:
        """The file's tensors that stay behind."""
        return [name for name in self.weights.tensors if name not in self.dtypes]

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name → dtype and shape."""
        found = self.weights.tensors
        return {name: (dtype, tuple(found[name].shape)) for name, dtype in self.dtypes.items()}

    def pieces(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors in their new dtype, some rows at a time: (name, rows).

        Raises: IncompleteCheckpoint for values that are not finite, or not in the new dtype.
        """
        for name, piece in in_pieces(self.weights, names):
            check_range(f"{self.weights.name}: {name}", piece, self.dtypes[name])
            yield name, piece.to(self.dtypes[name])


def plan_conversion(path: Path, dtype: str | None = None) -> Conversion:
    """Recognises what Load LLM Encoder or Load Cross-Adapter takes, and lays out the new file.

    dtype: None is `ENCODER_DTYPE` for an encoder, the file's own for an adapter.
    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint, WrongRecipe.
    """
    weights = open_weights(path)
    if find_prefix(weights, T5_MARK) is not None:
        return plan_encoder(weights, dtype or ENCODER_DTYPE)
    if find_prefix(weights, ADAPTER_MARK) is not None:
        return plan_adapter(weights, dtype)
    raise UnknownCheckpoint(
        f"{weights.name} holds neither a T5 encoder (no {T5_MARK}) nor a Cross-Adapter (no {ADAPTER_MARK}) "
        f"among its {describe(list(weights.tensors))}. RankGen's pytorch_model.bin and LLM4GEN's projector.pth "
        "can be converted."
    )


def plan_encoder(weights: Weights, dtype: str) -> Conversion:
    config, names = recognise_t5(weights)
    folder = weights.path if weights.path.is_dir() else weights.path.parent
    own = folder.resolve() if has_tokenizer(folder) else None
    tokenizer = f"{own.name}/{TOKENIZER_FILE}" if own else HOST_TOKENIZER
    kind = f"T5 encoder, {config.layers} layers of width {config.width}"
    return lay_out(weights, kind, dtype, names, {"tokenizer": tokenizer}, own)


def plan_adapter(weights: Weights, dtype: str | None) -> Conversion:
    config, recipe, names = recognise_adapter(weights)
    mark = next(name for name in names if name.endswith(ADAPTER_MARK))
    stored = weights.tensors[mark].dtype
    own = next((name for name, known in DTYPES.items() if known == stored), "fp32")
    kind = f"Cross-Adapter, from width {config.llm_dim} to {config.clip_dim}"
    return lay_out(weights, kind, dtype or own, names, recipe_metadata(recipe))


def lay_out(
    weights: Weights,
    kind: str,
    dtype: str,
    names: dict[str, str],
    metadata: dict[str, str],
    tokenizer: Path | None = None,
) -> Conversion:
    dtypes = {
        theirs: width(ours, weights.tensors[theirs].ndim, DTYPES[dtype]) for theirs, ours in names.items()
    }
    return Conversion(weights, kind, dtype, dtypes, {"format": "pt", "dtype": dtype, **metadata}, tokenizer)


def width(ours: str, dimensions: int, dtype: torch.dtype) -> torch.dtype:
    """The dtype of one tensor in a file of `dtype`.

    The matrices of products have the chosen one. Norms, biases and position bias are computed with in fp32
    and weigh nothing, so that they are kept in fp32: the file then loads as its source does with that dtype
    chosen in the node. With fp8 they are kept in bf16, and so is the embedding, which is no product's.
    """
    product = dimensions == 2 and ours != "position_bias.weight"
    if dtype.itemsize == 1:
        return dtype if product and ours != "embedding.weight" else torch.bfloat16
    return dtype if product else torch.float32


def check_range(name: str, values: Tensor, dtype: torch.dtype) -> None:
    """Refuses values that `dtype` would make infinite, or that are not finite already.

    Raises: IncompleteCheckpoint, which says what dtype holds them.
    """
    low, high = torch.aminmax(values if values.dtype.itemsize > 1 else values.float())
    largest = max(-low.item(), high.item())
    if math.isnan(low.item()) or math.isinf(largest):
        raise IncompleteCheckpoint(
            f"{name} has NaN or infinite values. The file is damaged; download it again."
        )
    if largest <= torch.finfo(dtype).max:
        return
    short = {known: name for name, known in DTYPES.items()}
    wider = [short[known] for known in (torch.bfloat16, torch.float32) if largest <= torch.finfo(known).max]
    raise IncompleteCheckpoint(
        f"{name} has values up to {largest:g}, and {short[dtype]} ends at {torch.finfo(dtype).max:g}. "
        + (f"Choose {wider[0]}." if wider else "No dtype that can be chosen holds them.")
    )
