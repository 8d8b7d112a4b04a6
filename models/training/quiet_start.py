"""The objective *quiet start*: a new adapter first learns to change nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cross_adapter import CrossAdapter
from .data import Batch
from .schedule import NoiseSchedule, Predict, squared_error


@dataclass(frozen=True)
class QuietStart:
    """‖u(x_t, t, [c; A(c, l)]) - u(x_t, t, c)‖² / ‖u(x_t, t, c)‖², the relative change of the prediction, squared.

    An adapter of zeros does not leave the UNet's prediction as it is, because its tokens take part in the softmax of
    the cross-attention. So the adapter begins near to such a one, see `begin_quietly`, and is fitted to the prediction
    on CLIP's tokens alone before it learns anything else. Training then starts from the pictures that the checkpoint
    makes without it.
    """

    predict: Predict
    schedule: NoiseSchedule
    adapter: CrossAdapter

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of each example, [b]."""
        noised = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        with torch.no_grad():
            target = self.predict(noised, batch.timesteps, batch.clip_context, batch.pooled)
        prediction = self.predict(noised, batch.timesteps, batch.context(self.adapter), batch.pooled)
        return squared_error(prediction, target) / squared_error(target, torch.zeros_like(target))


@torch.no_grad()
def begin_quietly(adapter: CrossAdapter, clip: Tensor) -> None:
    """Makes each fused token about the mean of CLIP's tokens, whatever the LLM says. Only `key` stays as it was drawn.

    Exactly neutral would be each of CLIP's tokens once more, or twice, but the LLM's are of another number. Tokens that
    all equal the mean are neutral to the first order of what the UNet asks for: an attention of small logits gives the
    value of its tokens' mean, with them or without.

    The attention is nearly even, its values are CLIP's tokens as they are, and the feed-forward begins at 0. A tenth of
    what the LLM says and asks for is left, from which the adapter learns.

    clip: [n, c], CLIP's states of any text, whose scale `clip_norm` takes away and `out` gives back.
    """
    adapter.llm_proj.weight.mul_(0.1)
    adapter.query.weight.mul_(0.1)
    torch.nn.init.eye_(adapter.value.weight)
    torch.nn.init.eye_(adapter.out.weight)
    # Medians, because the first token of a state that no norm has ended is much larger than the others.
    adapter.out.weight.mul_(clip.float().std(1, correction=0).median().to(adapter.out.weight))
    adapter.out.bias.fill_(clip.float().mean(1).median())
    adapter.mlp[2].get_parameter("weight").zero_()
