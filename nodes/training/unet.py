"""A MODEL's UNet as the trainer calls it: a copy that lets gradients through, and that may learn itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from comfy.sd import load_lora_for_models
from comfy.weight_adapter import adapter_maps
from torch import Tensor, nn

from ...models.errors import UntrainableModel
from ...models.training.entity import attention_to
from ...models.training.schedule import EPS, NoiseSchedule, V
from .. import host
from .attention import attention_options
from .job import LORA, WHOLE

WHICH = "Connect a MODEL of SD1.5, SD2 or SDXL from Load Checkpoint or Load Diffusion Model, in fp32, fp16 or bf16."
# Width of the context → that of what a UNet reads beside it: nothing for SD1.5 and SD2, pooled output and sizes for
# SDXL and its refiner.
KINDS = {768: None, 1024: None, 2048: 2816, 1280: 2560}
INPAINTING = 9  # channels that a UNet for it reads, where others read 4
MOST_BLOCKS = 12  # in a row, of any of these UNets
PIXELS = 8  # along a side of what one cell of the latents shows
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class UNetInTraining:
    """A copy of a MODEL, with its LoRA and merges, whose UNet is read again from its file.

    ComfyUI loads models in inference mode, so gradients cannot pass through the weights of the user's MODEL. The copy
    also keeps the user's weights as they are. Make and use it outside of inference mode.

    width: of the adapter's tokens, which the UNet's context must have.
    what:  learns of the UNet: nothing (FROZEN), a LoRA on the projections of all attention layers, or WHOLE.
    rank:  of the LoRA.
    dtype: in which the UNet is computed. What learns is fp32.
    Raises: UntrainableModel.
    """

    def __init__(self, model: Any, width: int, *, what: str, rank: int, dtype: torch.dtype, seed: int):
        check_kind(model, width)
        self.patcher = host.copy_from_file(model)
        if self.patcher is None:
            raise UntrainableModel(f"This MODEL does not know the file that it was loaded from. {WHICH}")
        check_weights(self.patcher.model)
        self.model = model
        self.patcher.model.requires_grad_(False)
        self.patcher.set_model_compute_dtype(dtype)
        self.schedule = schedule_of(self.patcher)
        self.lora = add_lora(self.patcher, rank, seed) if what == LORA else {}
        self.attention = attention_options(self.patcher)
        self.options: dict[str, Any] = {}  # for ComfyUI's UNet, while its attention is watched
        self.whole = what == WHOLE
        if self.whole:
            self.patcher.model.diffusion_model.float()

    def learns(self) -> dict[str, nn.Parameter]:
        """What learns, by ComfyUI's names: the LoRA's matrices, or all of the UNet's weights.

        Call it when the UNet is on its device: weights that are patched there, as by a LoRA, are other objects then.
        """
        if self.whole:
            weights = self.patcher.model.diffusion_model.requires_grad_(True).named_parameters()
            return {f"diffusion_model.{name}": weight for name, weight in weights}
        return {name: weight for name, weight in self.lora.items() if weight.requires_grad}

    def learnt(self, averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a user keeps, in main memory, given the trainer's averages by the names of `learns`.

        A LoRA's file also holds its alpha, which does not learn. A whole UNet has the dtype of the user's MODEL.
        """
        found = {name: weight.detach().clone() for name, weight in self.lora.items()} | dict(averages)
        if self.whole:
            own = self.model.model_state_dict("diffusion_model.")
            found = {name: weight.to(own[name].dtype) for name, weight in found.items()}
        return {name: weight.cpu() for name, weight in found.items()}

    def changed(self, learnt: Mapping[str, Tensor]) -> Any:
        """The user's MODEL with what was learnt as patches on it, which core's nodes also save."""
        if not self.whole:
            return load_lora_for_models(self.model, None, dict(learnt), 1.0, 0)[0] if learnt else self.model
        changed = self.model.clone()
        changed.add_patches({name: ("set", (weight,)) for name, weight in learnt.items()})
        return changed

    @property
    def blocks(self) -> Iterator[nn.Module]:
        """What gradient checkpointing computes again: the layers of the UNet's blocks."""
        unet = self.patcher.model.diffusion_model
        for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
            yield from block or ()

    def predict(
        self, noised: Tensor, timesteps: Tensor, context: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """See `models.training.schedule.Predict`."""
        options = {**self.attention, **self.options}
        return predict(self.patcher.model, self.schedule, noised, timesteps, context, pooled, options)

    @contextmanager
    def watched(self, shares: Tensor) -> Iterator[list[Tensor]]:
        """See `models.training.entity.Watch`."""
        found: list[Tensor] = []

        def attend(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
            weights = attention_to(query, key, extra["n_heads"])
            found.append(weights.mean(1) @ shares)
            values = value.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2)
            return (weights.to(value.dtype) @ values).transpose(1, 2).flatten(-2)

        blocks = ((name, number) for name in ("input", "middle", "output") for number in range(MOST_BLOCKS))
        self.options = {"patches_replace": {"attn2": dict.fromkeys(blocks, attend)}}
        try:
            yield found
        finally:
            self.options = {}


class Teacher:
    """A MODEL that predicts and does not learn. It stays in inference mode, as all of the user's models."""

    def __init__(self, model: Any, width: int):
        check_kind(model, width)
        self.patcher = model
        self.schedule = schedule_of(model)
        self.attention = attention_options(model)

    def predict(
        self, noised: Tensor, timesteps: Tensor, context: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """See `models.training.schedule.Predict`."""
        with torch.inference_mode():
            prediction = predict(
                self.patcher.model, self.schedule, noised, timesteps, context, pooled, self.attention
            )
        return prediction.clone()  # an ordinary tensor, which autograd may keep


def predict(
    model: Any,
    schedule: NoiseSchedule,
    noised: Tensor,
    timesteps: Tensor,
    context: Tensor,
    pooled: Tensor | None,
    options: Mapping[str, Any],
) -> Tensor:
    """A UNet's prediction, through ComfyUI's own call.

    options: ComfyUI's `transformer_options`.

    ComfyUI takes latents that are larger by √(sigma² + 1), and returns the clean latents that the prediction implies.
    """
    signal, spread = schedule.factors(timesteps)
    x, sigma = noised / signal, spread / signal
    clean = model.apply_model(
        x,
        sigma.flatten(),
        c_crossattn=context,
        transformer_options=dict(options),
        **read_beside(model, noised, pooled),
    )
    return schedule.target(clean, (x - clean) / sigma, timesteps)


def read_beside(model: Any, noised: Tensor, pooled: Tensor | None) -> dict[str, Tensor]:
    """What a UNet of SDXL's kind reads beside the context: CLIP's pooled output, and the picture's size without a crop.

    It is made by ComfyUI's own `extra_conds`, with the values that a KSampler gives it for CLIPTextEncode.
    """
    if pooled is None:
        return {}
    sizes = {"width": noised.shape[3] * PIXELS, "height": noised.shape[2] * PIXELS}
    found = model.extra_conds(noise=noised, device=noised.device, pooled_output=pooled, **sizes)
    return {name: entry.cond.to(noised.device) for name, entry in found.items()}


def schedule_of(patcher: Any) -> NoiseSchedule:
    """Reads the noise schedule and what the UNet predicts, also where a node such as ModelSamplingDiscrete set them.

    Raises: UntrainableModel.
    """
    sampling = patcher.get_model_object("model_sampling")
    sigmas = sampling.sigmas.detach().clone().double()
    # What clean latents follow from a prediction of 1 at sigma = 2, without latents?
    found = sampling.calculate_denoised(torch.tensor([2.0]), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    predictions = {EPS: -2.0, V: -2.0 / 5**0.5}
    kind = next((name for name, value in predictions.items() if abs(found.item() - value) < 1e-3), None)
    # Flow models mix latents and noise in another way, which shows in what the UNet is given.
    given = sampling.calculate_input(torch.tensor([2.0]), torch.ones(1, 1, 1, 1)).item()
    if kind is None or abs(given - 1 / 5**0.5) > 1e-3:
        raise UntrainableModel(
            f"This MODEL predicts neither noise nor velocity, but what {type(sampling).__name__} stands for. {WHICH}"
        )
    return NoiseSchedule((1 / (sigmas**2 + 1)).float(), kind)


def check_kind(model: Any, width: int) -> None:
    """Raises: UntrainableModel if a MODEL is of another kind than `KINDS`, or has a context of another width."""
    config = model.model.model_config.unet_config
    found = {name: config.get(name) for name in ("context_dim", "in_channels", "adm_in_channels")}
    context, kind = found["context_dim"], type(model.model.model_config).__name__
    if found["in_channels"] == INPAINTING and context in KINDS:
        raise UntrainableModel(
            f"This MODEL is {kind} for inpainting: its UNet also reads a mask and a masked picture. {WHICH} What is "
            "trained with an ordinary MODEL of this kind can be used with this one."
        )
    if found != {"context_dim": context, "in_channels": 4, "adm_in_channels": KINDS.get(context, -1)}:
        raise UntrainableModel(
            f"This MODEL is {kind} ({', '.join(f'{name}: {value}' for name, value in found.items())}). {WHICH}"
        )
    if context != width:
        raise UntrainableModel(
            f"This MODEL is {kind}, whose context is {context} wide, and the adapter's tokens are {width} wide. "
            f"Connect an adapter of that width: set context_width of New Cross-Adapter to {context}, or connect a "
            "MODEL of the adapter's kind."
        )


def check_weights(model: Any) -> None:
    """Raises: UntrainableModel if weights are quantised."""
    for name, weight in model.diffusion_model.named_parameters():
        if weight.dtype not in DTYPES or type(weight.data) is not Tensor:
            kind = f"{type(weight.data).__name__} in {weight.dtype}".replace("torch.", "")
            raise UntrainableModel(f"This MODEL is quantised: {name} is {kind}. {WHICH}")


def add_lora(patcher: Any, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Puts core's LoRA on the projections of all attention layers. Returns its tensors by the names of core's files.

    Its scale is 1 (alpha equals the rank), and it starts as no change.
    """
    found: dict[str, nn.Parameter] = {}
    with torch.random.fork_rng(devices=[]):  # core draws from the global generator
        torch.manual_seed(seed)
        for name, module in patcher.model.named_modules():
            if (".attn1.to_" in name or ".attn2.to_" in name) and hasattr(module, "weight_function"):
                # On the CPU, so that the seed decides alone, wherever the weights are.
                shape = torch.empty_like(module.weight, device="cpu")
                lora = adapter_maps["LoRA"].create_train(shape, rank=rank, alpha=float(rank))
                patcher.add_weight_wrapper(f"{name}.weight", lora)
                found |= {f"{name}.{part}": weight for part, weight in lora.named_parameters()}
    return found
