"""What tells one training from another, and what an adapter's file says of its own."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from ...models.training.settings import COSINE
from ..managed import ManagedAdapter
from .data import TrainingSet
from .job import LORA, Job
from .teaching import Context


def digest(tensors: Mapping[str, Tensor], *others: object, dtype: torch.dtype | None = None) -> str:
    """A sha256 that changes with the names and bytes of tensors, in whatever order, and with the other values.

    dtype: to which each tensor is cast before, one at a time; None: as it is.
    """
    found = hashlib.sha256(repr(others).encode())
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
        found.update(f"{name} {plain.dtype} {list(plain.shape)} ".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """A sha256 of weights that is the same for fp16 or bf16 weights and for the same numbers in fp32."""
    return digest(tensors, dtype=torch.float32)


def origin(model: Any) -> str:
    """The file of a MODEL, and what was patched onto it, such as LoRA and merges: the same after each start."""
    patches = model.patches
    try:
        patched = patches and content_digest(patches)
    except TypeError:  # of a kind that another pack made up
        patched = model.patches_uuid
    return f"{model.cached_patcher_init and model.cached_patcher_init[1:]} {patched}"


def content_digest(value: object) -> str:
    """A sha256 of what a MODEL's patches hold. Raises: TypeError for a value whose content cannot be told."""
    if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter):
        return digest({"": value})
    if isinstance(value, Mapping):
        parts: list[object] = [(str(key), content_digest(one)) for key, one in sorted(value.items(), key=str)]
    elif isinstance(value, (tuple, list)):
        parts = [content_digest(one) for one in value]
    elif value is None or isinstance(value, (str, int, float, bool)):
        parts = [value]
    elif isinstance(value, WeightAdapterBase):
        parts = [content_digest(value.weights)]
    elif inspect.isfunction(value) and not value.__closure__ and not value.__defaults__:
        parts = [f"{value.__module__}.{value.__qualname__}"]
    else:
        raise TypeError(type(value).__name__)
    return hashlib.sha256(repr((type(value).__name__, parts)).encode()).hexdigest()


def job_digest(
    job: Job,
    pairs: TrainingSet,
    start: ManagedAdapter,
    models: Sequence[object],
    known: Mapping[str, Context],
) -> str:
    """Changes with all that decides on a step. With a constant learning rate, that is not the number of steps.

    models: what tells the models apart. known: text → what the teacher's UNet reads of it.
    """
    settings = job.settings if job.settings.decay == COSINE else replace(job.settings, steps=0)
    tensors = {f"start {name}": weight for name, weight in start.adapter.state_dict().items()}
    if pairs.origin is None:
        tensors |= {f"latent {index}": latent for index, latent in enumerate(pairs.latents)}
        tensors |= {f"clip {text}": states.clip for text, states in pairs.encoded.items()}
        tensors |= {f"llm {text}": states.llm.states for text, states in pairs.encoded.items()}
        tensors |= {
            f"pooled {text}": states.pooled
            for text, states in pairs.encoded.items()
            if states.pooled is not None
        }
    tensors |= {f"teacher {text}": context.states for text, context in known.items()}
    # Only where the UNet reads them, so that the state of an SD1.5 training keeps its digest.
    pooled = pairs.encoded[""].pooled is not None
    tensors |= {f"teacher's pooled {text}": context.pooled for text, context in known.items() if pooled}
    words = (
        [states.pairs for states in pairs.encoded.values()] if job.entity_weight and not pairs.origin else []
    )
    unet = (job.unet, job.rank if job.unet == LORA else None)
    others = (
        pairs.texts,
        pairs.recipe,
        pairs.origin,
        words,
        settings,
        unet,
        job.entity_weight,
        job.quiet_start,
    )
    return digest(tensors, *others, job.precision, start.is_new, start.is_drawn, models)


def facts_of(job: Job, pairs: TrainingSet, start: ManagedAdapter) -> dict[str, Any]:
    """What an adapter's file says of the data and the job that it was trained with, by the names of the node's inputs.

    version: of these entries. start: what the adapter said of itself that this training started from.
    """
    settings = job.settings
    before = json.loads(start.training or "{}")
    return {
        "version": 1,
        "pictures": len(pairs.latents),
        "captions": len(set(pairs.texts)),
        "llm": dict(pairs.llm),
        "job": {
            "batch_size": settings.batch_size,
            "accumulate": settings.accumulate,
            "learning_rate": settings.learning_rate,
            "unet_learning_rate": settings.unet_learning_rate,
            "unet": job.unet,
            "rank": job.rank if job.unet == LORA else None,
            "drop_text": settings.drops.text,
            "drop_llm": settings.drops.llm,
            "drop_clip": settings.drops.clip,
            "drop_clip_tokens": settings.drops.clip_tokens,
            "min_snr": settings.gamma,
            "entity_weight": job.entity_weight,
            "quiet_start": job.quiet_start if start.is_new else 0,
            "seed": settings.seed,
            "precision": job.precision,
            **{
                key: getattr(settings, key)
                for key in ("weight_decay", "warm_up", "decay", "clip_norm", "ema", "noises", "weighting")
            },
        },
        **({"start": before} if before else {}),
        **({"notes": before["notes"]} if "notes" in before else {}),
    }
