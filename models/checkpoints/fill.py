"""From a file's tensors to a model, strictly: every tensor is accounted for before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import IncompleteCheckpoint, UnknownCheckpoint
from ..files.values import DTYPES, is_finite, is_plain
from ..files.weights import Weights, read_as
from ..progress import Progress, silent
from .refusal import list_tensors, refusal

Config = TypeVar("Config")
NOTHING = re.compile(r"(?!)")
# Tables that are computed, what CLIP and T5 files of ComfyUI hold besides, and what training programs count.
NO_WEIGHTS = re.compile(
    r"(.*\.)?(inv_freq|position_ids|masked_bias|logit_scale|logit_bias|spiece_model|tekken_model"
    r"|(global_)?step|epoch|iteration|num_updates|model_ema\.decay)"
)


@dataclass(frozen=True)
class Recognised(Generic[Config]):
    """A model that was found in a file, with every tensor present and of the right shape.

    config: the model's sizes.
    names:  the file's tensor names → the model's parameter names.
    build:  makes the model on the meta device. Takes `operations=` for its layers and, for an LLM, `depth=`.
    """

    config: Config
    names: dict[str, str]
    build: Callable[..., Any]


def find_prefix(weights: Weights, key: str, names: Collection[str] = ()) -> str | None:
    """What stands before a key in the file's names, such as `CrossFusionModule.0.` or `t5_encoder.`.

    names: others of the model's names. Of several prefixes, the one counts that most of these stand behind: a model
           for pictures may share the key with the text model beside it.
    None if no name ends with the key.
    Raises: UnknownCheckpoint if several models of the kind are in the file.
    """
    prefixes = [name[: -len(key)] for name in weights.tensors if name.endswith(key)]
    found = {prefix: sum(prefix + name in weights.tensors for name in names) for prefix in prefixes}
    best = [prefix for prefix in prefixes if found[prefix] == max(found.values())]
    if len(best) > 1:
        raise UnknownCheckpoint(
            f"{weights.name} holds {len(best)} models of this kind ({', '.join(prefix + key for prefix in best)}), and "
            "which of them is meant is not known. Save the one that you want into a file of its own."
        )
    return best[0] if best else None


def measure(weights: Weights, name: str) -> tuple[int, int]:
    """The two sizes of a matrix. Raises: IncompleteCheckpoint if it is missing or not a matrix."""
    shape = tuple(weights.tensors[name].shape) if name in weights.tensors else ()
    if len(shape) != 2 or 0 in shape:
        found = f"its shape is {list(shape)}" if name in weights.tensors else "it is missing"
        raise refusal(weights, f"has no matrix {name}: {found}")
    return shape[0], shape[1]


def check_names(
    blueprint: nn.Module, weights: Weights, names: Mapping[str, str], unused: re.Pattern[str] = NOTHING
) -> None:
    """Checks that the file has every tensor of the model, dense and of the right shape, and no unknown ones.

    blueprint: the model, built with plain layers: under Dynamic VRAM, ComfyUI's layers have no shapes until filled.
    names:     the file's names → the model's, all of them.
    unused:    names in the file that are known and not needed.
    Raises: IncompleteCheckpoint, which names tensors as the file does; UnknownCheckpoint if `refusal` knows the cause.
    """
    shapes = {name: tensor.shape for name, tensor in blueprint.state_dict().items()}
    assert set(names.values()) == shapes.keys()
    found = weights.tensors
    parts = {weights.part_of(name) for name in names}
    problems = {
        "lacks": [theirs for theirs in names if theirs not in found],
        "has unknown": [
            name
            for name, tensor in found.items()
            if name not in names
            and weights.part_of(name) in parts
            and not unused.fullmatch(name)
            and not is_no_weight(name, tensor)
        ],
        "has misshapen": [
            f"{theirs} {list(found[theirs].shape)} instead of {list(shapes[ours])}"
            for theirs, ours in names.items()
            if theirs in found and found[theirs].shape != shapes[ours]
        ],
        "has something other than plain numbers in": [
            f"{theirs} ({found[theirs].dtype}, {found[theirs].layout}, {found[theirs].device})"
            for theirs in names
            if theirs in found and not is_plain(found[theirs])
        ],
    }
    problem = ", and ".join(
        f"{problem} {list_tensors(culprits)}" for problem, culprits in problems.items() if culprits
    )
    if problem:
        raise refusal(weights, problem)


def is_no_weight(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one that programs save beside the weights and that no hidden state depends on."""
    is_counter = tensor.numel() == 1 and not tensor.is_floating_point()
    is_causal_mask = tensor.ndim == 4 and tensor.shape == (1, 1, tensor.shape[2], tensor.shape[2])
    return is_counter or is_causal_mask or NO_WEIGHTS.fullmatch(name) is not None


def fill(
    found: Recognised[Any],
    weights: Weights,
    *,
    operations: Any = nn,
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
    mapped: bool = True,
    **sizes: int | None,
) -> Any:
    """Builds a recognised model and gives it its file's tensors.

    dtype:    of the linear weights in memory (`dtypes_of` says what follows for the others); None: the file's.
              Tensors that have their dtype already stay memory-mapped; the others are cast a batch at a time.
    progress: is told of each tensor.
    mapped:   whether tensors may stay memory-mapped. If not, all are copied, a batch at a time.
    sizes:    passed on to `found.build`, such as `depth=`.

    A layer with scaled fp8 weights gets the scale as its attribute `scale` (`encoders/linear.py`).
    Raises: IncompleteCheckpoint, which names tensors as the file does.
    """
    blueprint = found.build(operations=nn, **sizes)
    wanted = blueprint.state_dict()
    names = {theirs: ours for theirs, ours in found.names.items() if ours in wanted}
    weights = weights.only(names)
    tensors = weights.tensors
    dtypes = dtypes_of(blueprint, file_dtype(blueprint, names, weights) if dtype is None else dtype)
    kept = [theirs for theirs, ours in names.items() if mapped and tensors[theirs].dtype == dtypes[ours]]
    to_cast = {theirs: dtypes[ours] for theirs, ours in names.items() if theirs not in kept}
    step = progress(len(names))
    state, scales, broken = {}, {}, []
    as_they_are = ((name, tensors[name], weights.scales.get(name, 1.0)) for name in kept)
    for theirs, tensor, scale in chain(as_they_are, read_as(weights, to_cast)):
        state[names[theirs]], scales[names[theirs]] = tensor, scale
        if not is_finite(tensor, scaled=theirs in weights.scales):
            broken.append(theirs)
        step()
    if broken:
        raise IncompleteCheckpoint(
            f"{weights.name} has NaN or infinite values in {list_tensors(broken)}. The file is damaged, or its weights "
            "do not fit the chosen dtype (on a GPU, auto makes fp16 of an fp32 file); download it again or choose fp32."
        )
    model = found.build(operations=operations, **sizes)
    model.load_state_dict(state, strict=True, assign=True)
    for ours, scale in scales.items():
        if scale != 1.0:
            model.get_submodule(ours.removesuffix(".weight")).scale = scale
    return model.eval().requires_grad_(False)


def dtypes_of(blueprint: nn.Module, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Which dtype each parameter is stored in, given the dtype chosen for the linear weights.

    Linear weights and the token embedding get the chosen dtype; with fp8 the embedding stays bf16, because no later
    layer can undo its rounding. All other parameters are small, take part in fp32 arithmetic, and stay fp32.

    blueprint: a model of plain layers; an LLM's names its token embedding (`embedding_name`).
    """
    dtypes = dict.fromkeys(blueprint.state_dict(), torch.float32)
    dtypes |= dict.fromkeys(linear_weights(blueprint), dtype)
    embedding = getattr(blueprint, "embedding_name", None)
    if embedding is not None:
        dtypes[embedding] = torch.bfloat16 if dtype.itemsize == 1 else dtype
    return dtypes


def linear_weights(blueprint: nn.Module) -> list[str]:
    """The names of the weights of linear layers, those left out that a family computes in its own way, as Falcon's."""
    linear = (module for module in blueprint.named_modules() if isinstance(module[1], nn.Linear))
    return [f"{name}.weight" for name, module in linear if not is_transformers(module)]


def is_transformers(module: nn.Module) -> bool:
    """Whether a module's class is one of transformers' own. Such a module wants its weights in the input's dtype."""
    return type(module).__module__.startswith("transformers.")


def file_dtype(blueprint: Any, names: Mapping[str, str], weights: Weights) -> torch.dtype:
    """The dtype of the file's linear weights, or of its token embedding if the model has no linear layer.

    A dtype that a user cannot choose is replaced by a wider one that can hold its numbers.
    names: the file's → the model's.
    """
    first = next(iter(linear_weights(blueprint)), None) or blueprint.embedding_name
    name_in_file = {ours: theirs for theirs, ours in names.items()}
    dtype = weights.tensors[name_in_file[first]].dtype
    if dtype in DTYPES.values():
        return dtype
    return torch.float32 if dtype.itemsize > 2 else torch.bfloat16
