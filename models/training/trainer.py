"""The loop: draw examples, compute the objective, follow its gradient, average."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .. import errors
from ..errors import TrainingDiverged, WrongTraining
from .adamw import adamw
from .data import Batch, TrainingData, batches
from .drawing import draw_step
from .ema import EMA
from .ranks import ALONE, Ranks, add_gradients
from .settings import COSINE, Settings

log = logging.getLogger(__name__)

Objective = Callable[[Batch], Tensor]  # a batch → the loss of each example, [b]


class Trainer:
    """A training that can stop after any step and go on later. On a CPU it then gives the same weights to the bit.

    objective: `Denoise`, `Match` or `QuietStart`, over the adapter and UNet whose weights are given.
    timesteps: length of the noise schedule.
    adapter:   the Cross-Adapter. All of its weights learn.
    unet:      name → weight of what learns beside it, such as a LoRA's matrices.
    device:    where the objective is computed. The weights must be there.
    ranks:     the processes that train together; each must have the same data, weights and settings. `batch_size` is
               that of one process.
    is_out_of_memory: whether an error says that memory is short. Batches are computed in smaller parts then.
    losses:    the loss of each step so far.
    batch:     how many examples are in a batch, each noise of a picture counted by itself.
    at_once:   how many of them are computed together.
    Raises: WrongTraining if there is nothing to learn from.
    """

    def __init__(
        self,
        objective: Objective,
        data: TrainingData,
        settings: Settings,
        *,
        timesteps: int,
        adapter: nn.Module,
        unet: Mapping[str, nn.Parameter] | None = None,
        device: torch.device | None = None,
        ranks: Ranks = ALONE,
        is_out_of_memory: Callable[[Exception], bool] = errors.is_out_of_memory,
    ):
        if not data.examples:
            raise WrongTraining(
                "There is no picture with a caption to learn from. Give at least one of each."
            )
        self.objective, self.data, self.settings, self.timesteps = objective, data, settings, timesteps
        self.device = torch.device("cpu") if device is None else device
        self.ranks, self.is_out_of_memory = ranks, is_out_of_memory
        self.losses: list[float] = []
        self.batch = self.at_once = settings.batch_size * settings.noises
        groups = [
            (settings.learning_rate, {f"adapter.{name}": w for name, w in adapter.named_parameters()}),
            (settings.unet_learning_rate, {f"unet.{name}": w for name, w in (unet or {}).items()}),
        ]
        self.weights = {name: weight for _, group in groups for name, weight in group.items()}
        self.optimizer = adamw(
            [{"params": list(group.values()), "base": rate} for rate, group in groups if group],
            settings.weight_decay,
            self.device,
        )
        self.ema = EMA(self.weights, settings.ema)

    def restart_average(self) -> None:
        """Begins the average anew, after something else has changed the weights."""
        self.ema = EMA(self.weights, self.settings.ema)

    @property
    def steps(self) -> int:
        """How many steps are done."""
        return len(self.losses)

    def run(self, on_step: Callable[[], None] = lambda: None) -> None:
        """Runs the steps that are left of `settings.steps`, and calls `on_step` after each. Raises: see `step`."""
        while self.steps < self.settings.steps:
            self.step()
            on_step()

    def step(self) -> float:
        """One update of the weights. Returns the loss before it.

        Raises: TrainingDiverged, or what says that memory is too short for one example. The weights are still those of
        the step before.
        """
        loss = self.gradients()
        norm = nn.utils.clip_grad_norm_(self.weights.values(), self.settings.clip_norm)
        if not math.isfinite(loss) or not norm.isfinite():
            raise TrainingDiverged(
                f"In step {self.steps + 1} the loss is {loss:g} and the norm of its gradients {norm:g}. Use a lower "
                "learning rate or a longer warm-up, or fp32 as precision, and look for broken pictures. With "
                f"{self.steps} steps and all else as it is you get what was learnt so far, to train it further."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate_factor(self.settings, self.steps)
        self.optimizer.step()
        self.losses.append(loss)
        self.ema.update(self.weights, self.steps)
        return loss

    def gradients(self) -> float:
        """Gives the weights the gradients of one step's mean loss, and returns that loss."""
        total = self.own_share()
        add_gradients(self.ranks, list(self.weights.values()))
        self.ranks.add([total])
        return total.item()

    def own_share(self) -> Tensor:
        """This process's part of the gradients and of the loss, in smaller and smaller parts until they fit in memory.

        A loss is the sum of its examples' losses, so the parts give the same but for rounding. What a try adds that
        fails is thrown away, and the other processes notice nothing of it.
        """
        while True:
            self.optimizer.zero_grad()
            try:
                return self.try_share()
            except Exception as error:
                if self.at_once == 1 or not self.is_out_of_memory(error):
                    raise
            # Outside of the handler, where the error no longer holds the tensors of the try.
            tried, self.at_once = self.at_once, (self.at_once + 1) // 2
            log.warning(
                "Batches of %d do not fit in memory. From now on they are computed in parts of at most %d, from which "
                "the same is learnt.",
                tried,
                self.at_once,
            )

    def try_share(self) -> Tensor:
        """Adds the gradients of this process's examples to the weights', and returns its part of the loss."""
        settings = self.settings
        examples = settings.batch_size * settings.noises * settings.accumulate * self.ranks.count
        total = torch.zeros((), device=self.device)
        for drawn in draw_step(self.data, self.settings, self.timesteps, self.steps, self.ranks):
            for first in range(0, len(drawn), self.at_once):
                for batch in batches(drawn[first : first + self.at_once], self.device):
                    loss = self.objective(batch).sum() / examples
                    # Without the LLM's half and with a frozen UNet, nothing that learns takes part.
                    if loss.requires_grad:
                        loss.backward()
                    total += loss.detach()
        return total

    def result(self, part: str) -> dict[str, Tensor]:
        """The averaged weights of `adapter` or of `unet`, by their names there."""
        prefix = f"{part}."
        return {
            name.removeprefix(prefix): weight.clone()
            for name, weight in self.ema.average.items()
            if name.startswith(prefix)
        }


def rate_factor(settings: Settings, step: int) -> float:
    """What the learning rates are multiplied with in a step (counted from 0): a linear rise, then the decay."""
    warm_up = settings.warm_up
    if step < warm_up:
        return (step + 1) / warm_up
    if settings.decay == COSINE:
        done = min(1.0, (step - warm_up) / max(1, settings.steps - warm_up))
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0
