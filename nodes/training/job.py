"""What Train Cross-Adapter is asked for: its inputs, and the job that they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from comfy_api.latest import io

from ...models.training.settings import Drops, Settings

FROZEN, LORA, WHOLE = (
    "frozen",
    "LoRA",
    "whole",
)  # choices of the input `unet`; saved workflows hold these strings
PREVIEW_EVERY = 100  # steps; a saved workflow or prompt that knows no previews gets them too
WHOLE_RATE = 0.1  # a whole UNet's learning rate, in adapter's: its weights have learnt already


@dataclass(frozen=True)
class Job:
    """What Train Cross-Adapter is asked for.

    settings:      of the trainer.
    unet:          what learns of the UNet: FROZEN, LORA or WHOLE.
    rank:          of the UNet's LoRA.
    quiet_start:   steps that a new adapter first learns to change nothing.
    precision:     "auto", "bf16" or "fp32", of the UNet.
    checkpointing: whether the UNet's layers are computed again for their gradients.
    save_every:    steps after which the state is saved; 0: only at the end.
    resume:        whether to go on from the saved state of the same job.
    preview_every: steps after which a preview picture is drawn; 0: none.
    entity_weight: of the entity-guided loss; 0: there is none.
    """

    settings: Settings
    unet: str
    rank: int
    quiet_start: int
    precision: str
    checkpointing: bool
    save_every: int
    resume: bool
    preview_every: int
    entity_weight: float


def job_inputs() -> list[io.Input]:
    """The inputs that `job_of` reads."""
    return [
        io.Int.Input("steps", default=1000, min=0, max=10_000_000, tooltip="Updates of the weights."),
        io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Pictures that are computed at once."),
        io.Int.Input(
            "accumulate",
            default=4,
            min=1,
            max=4096,
            advanced=True,
            tooltip="Batches for one step: as a larger batch, without its memory.",
        ),
        io.Float.Input(
            "learning_rate",
            default=1e-4,
            min=1e-8,
            max=1.0,
            step=1e-6,
            round=False,
            tooltip="Of the adapter and the LoRA. If the loss explodes, take a lower one.",
        ),
        io.Combo.Input(
            "unet",
            options=[FROZEN, LORA, WHOLE],
            default=FROZEN,
            tooltip="frozen: the adapter learns alone. LoRA: a LoRA for the UNet's attention learns with it. whole: "
            "the UNet itself does, which takes a GPU of 24 GB.",
        ),
        io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Rank of the LoRA."),
        rate_input(
            "drop_text", 0.1, "How often both halves read nothing, which makes negative prompts possible."
        ),
        rate_input(
            "drop_llm",
            0.1,
            "How often the LLM's half is left out, so that strength 0 stays good. Needs unet: LoRA or whole.",
        ),
        rate_input(
            "drop_clip", 0.1, "How often CLIP reads nothing, so that the LLM must tell the picture alone."
        ),
        io.Float.Input(
            "min_snr",
            default=5.0,
            min=0.0,
            max=1000.0,
            step=0.5,
            advanced=True,
            tooltip="Weight of nearly clean pictures in the loss (min-SNR gamma). 0: all are alike.",
        ),
        io.Int.Input(
            "quiet_start",
            default=200,
            min=0,
            max=100_000,
            advanced=True,
            tooltip="Steps in which a new adapter first learns to change nothing. A trained one needs none.",
        ),
        seed_input(
            "Decides on noise, order and drops. The same seed gives the same adapter on the same device."
        ),
        io.Combo.Input(
            "precision",
            options=["auto", "bf16", "fp32"],
            default="auto",
            advanced=True,
            tooltip="Of the UNet. auto: bf16 where the GPU has it, else fp32. What learns is always fp32.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=True,
            advanced=True,
            tooltip="Takes much less memory and about a third more time. The result is the same.",
        ),
        io.Int.Input(
            "save_every",
            default=250,
            min=0,
            max=1_000_000,
            advanced=True,
            tooltip="Steps after which the state is kept in output/llm4gen_training. 0: at the end and at Cancel only.",
        ),
        io.Boolean.Input(
            "resume",
            default=True,
            tooltip="Goes on from the kept state of the same inputs, also with more steps. Off: starts anew.",
        ),
    ]


def late_inputs() -> list[io.Input]:
    """Inputs of the job that came after the first release. In saved workflows, new ones must stand last."""
    return [
        io.Float.Input(
            "unet_learning_rate",
            default=0.0,
            min=0.0,
            max=1.0,
            step=1e-6,
            round=False,
            optional=True,
            advanced=True,
            tooltip="Of the LoRA or the whole UNet. 0: the adapter's for a LoRA, a tenth of it for the whole UNet.",
        ),
        io.Int.Input(
            "preview_every",
            default=PREVIEW_EVERY,
            min=0,
            max=1_000_000,
            optional=True,
            tooltip="Steps after which the node shows the first caption as it is drawn by then. It takes about as long "
            "as three steps, and changes nothing of what is learnt. 0: none.",
        ),
        io.Float.Input(
            "entity_weight",
            default=0.0,
            min=0.0,
            max=1000.0,
            step=0.001,
            round=False,
            optional=True,
            advanced=True,
            tooltip="Weight of a loss that makes an attribute look where its entity looks, such as 0.001. Needs pairs "
            "in Training Set.",
        ),
    ]


def seed_input(tooltip: str) -> io.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, tooltip=tooltip
    )


def rate_input(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, advanced=True, tooltip=tooltip)


def job_of(
    unet: str,
    rank: int,
    unet_learning_rate: float = 0.0,
    preview_every: int = PREVIEW_EVERY,
    entity_weight: float = 0.0,
    **inputs: Any,
) -> Job:
    """The inputs of `job_inputs` and `late_inputs` → a job. Raises: WrongTraining."""
    usual_rate = inputs["learning_rate"] * (WHOLE_RATE if unet == WHOLE else 1.0)
    settings = Settings(
        **{name: inputs[name] for name in ("steps", "batch_size", "accumulate", "learning_rate", "seed")},
        unet_learning_rate=unet_learning_rate or usual_rate,
        gamma=inputs["min_snr"],
        drops=Drops(inputs["drop_text"], inputs["drop_llm"], inputs["drop_clip"]),
    )
    if unet == FROZEN:  # an adapter that learns alone learns nothing from steps without it
        settings = replace(settings, drops=replace(settings.drops, llm=0.0))
    return Job(
        settings,
        unet=unet,
        rank=rank,
        preview_every=preview_every,
        entity_weight=entity_weight,
        checkpointing=inputs["gradient_checkpointing"],
        **{name: inputs[name] for name in ("quiet_start", "precision", "save_every", "resume")},
    )
