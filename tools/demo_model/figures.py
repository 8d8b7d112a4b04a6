"""What a model draws for captions, and how much of it is right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from demo_model import narrow
from demo_model.data import CELLS, Captioned
from demo_model.parts import SCALE
from scenes.detector import find_things
from scenes.verdict import Verdict, judge

if TYPE_CHECKING:
    from llm4gen.models.cross_adapter import CrossAdapter
    from llm4gen.models.training.data import EncodedText
    from llm4gen.models.training.schedule import NoiseSchedule

STEPS, GUIDANCE = 20, 2.0
AT_ONCE = 64  # pictures that are sampled together
Z = 1.96  # of a confidence interval of 95%
ENLARGED, GAP, ACROSS = 8, 1, 10  # of a contact sheet: pixels and cells of a picture, pictures in a row


@dataclass(frozen=True)
class Rate:
    """How often something is right, of how many."""

    right: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds of 95% confidence (Wilson 1927, Journal of the American Statistical Association 22, 209)."""
        if not self.of:
            return 0.0, 1.0
        share, spread = self.right / self.of, Z**2 / self.of
        middle = (share + spread / 2) / (1 + spread)
        reach = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
        return middle - reach, middle + reach

    def __str__(self) -> str:
        low, high = (f"{100 * bound:.0f}" for bound in self.interval)
        return f"{100 * self.right / max(1, self.of):.1f}% ({low} to {high})"


def rates(verdicts: Sequence[Verdict]) -> dict[str, Rate]:
    """For each part of a verdict. Only the captions that say something of it count."""
    found = {}
    for field in fields(Verdict):
        values = [value for one in verdicts if (value := getattr(one, field.name)) is not None]
        found[field.name] = Rate(sum(values), len(values))
    return found


class Drawer:
    """Draws with the narrow UNet and an adapter, many captions at once, by the sampler of the trainer's previews.

    unet: see `narrow`. adapter: for the LLM's own states. empty: the states of "".
    """

    def __init__(self, unet: Any, schedule: NoiseSchedule, adapter: CrossAdapter, empty: EncodedText):
        self.unet, self.schedule, self.adapter, self.empty = unet, schedule, adapter, empty

    def draw(self, texts: Sequence[EncodedText], seed: int, strength: float = 1.0) -> Tensor:
        """Pictures [b, 3, cells, cells]. The noise of each depends on its place alone. strength: as in the nodes."""
        noise = torch.randn(len(texts), 4, CELLS, CELLS, generator=torch.Generator().manual_seed(seed))
        latents = torch.empty_like(noise)
        for places in batches_of_equal_length([len(text.llm.rows.row_of) for text in texts]):
            latents[places] = self.sample([texts[place] for place in places], noise[places], strength)
        return latents[:, :3] / SCALE

    @torch.no_grad()
    def sample(self, texts: Sequence[EncodedText], noise: Tensor, strength: float) -> Tensor:
        from llm4gen.models.training.sampling import sample  # noqa: PLC0415

        positive, negative = (self.context(some, strength) for some in (texts, [self.empty]))
        negative = negative.expand(len(texts), -1, -1)
        return sample(self.predict, self.schedule, noise, positive, negative, steps=STEPS, guidance=GUIDANCE)

    def predict(self, noised: Tensor, timesteps: Tensor, context: Tensor, _: Tensor | None = None) -> Tensor:
        return self.unet(noised, timesteps.float().expand(len(noised)), context=context)

    def context(self, texts: Sequence[EncodedText], strength: float) -> Tensor:
        from llm4gen.models.training.data import Drawn, collate  # noqa: PLC0415

        none = torch.zeros(0)  # no latents are needed
        batch = collate(
            [Drawn(none, text.clip, text.llm if strength else None, None, none, 0) for text in texts],
            torch.device("cpu"),
        )
        context = batch.context(self.adapter)
        context[:, batch.clip.shape[1] :] *= strength
        return context


def batches_of_equal_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The places of equal lengths, at most `AT_ONCE` together."""
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        groups.setdefault(length, []).append(place)
    for group in groups.values():
        for start in range(0, len(group), AT_ONCE):
            yield group[start : start + AT_ONCE]


def unet_of(weights: Mapping[str, Tensor]) -> Any:
    """The narrow UNet with these weights, for drawing."""
    unet = narrow.build()
    unet.load_state_dict(dict(weights))
    return unet.eval().requires_grad_(False)


def verdicts(pictures: Tensor, captions: Sequence[Captioned]) -> list[Verdict]:
    return [
        judge(found, one.scene, CELLS) for found, one in zip(find_things(pictures), captions, strict=True)
    ]


def contact_sheet(pictures: Tensor) -> Image.Image:
    """Pictures [b, 3, cells, cells] in rows, on black."""
    side = CELLS + GAP
    rows = math.ceil(len(pictures) / ACROSS)
    sheet = -torch.ones(3, rows * side + GAP, ACROSS * side + GAP)
    for place, picture in enumerate(pictures):
        top, left = GAP + place // ACROSS * side, GAP + place % ACROSS * side
        sheet[:, top : top + CELLS, left : left + CELLS] = picture
    values = ((sheet.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(values)
    return image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.NEAREST)
