"""AdamW (Loshchilov & Hutter, arXiv 1711.05101), with all of its memory from the start."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what it keeps for each weight
FUSED_ON = ("cpu", "cuda")


def adamw(groups: list[dict[str, Any]], weight_decay: float, device: torch.device) -> torch.optim.Optimizer:
    """torch's AdamW, in its fused form where there is one.

    That form reads and writes each tensor once, where it lies. torch's own choice on a GPU takes as much memory in each
    step as all that learns; on a CPU it reads and writes each tensor eight times.
    """
    optimizer = None
    if device.type in FUSED_ON:
        with contextlib.suppress(RuntimeError):  # torch before 2.4 has it for GPUs alone
            optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
    if optimizer is None:
        optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    make_moments(optimizer)
    return optimizer


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Gives each weight the moments that it has before its first step.

    torch would make them within the first step. If memory ended there, some weights would be a step ahead of others.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            step = torch.zeros((), device=weight.device if group.get("fused") else torch.device("cpu"))
            optimizer.state[weight] = dict(
                zip(MOMENTS, (step, torch.zeros_like(weight), torch.zeros_like(weight)), strict=True)
            )
