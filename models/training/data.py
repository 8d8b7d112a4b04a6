"""What an adapter learns from: latents and the states of their captions, and batches of them in equal shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..cross_adapter import CrossAdapter
from ..features.features import Features

# An attribute and its entity, each by the places of its tokens. CLIP's tokens come first, then the LLM's.
Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class EncodedText:
    """A caption's states, which stay the same through all of the training.

    clip:    [n, c], CLIP's.
    llm:     the LLM's.
    teacher: [m, c], the context that a teacher gives its UNet for this text; only `Match` needs it.
    pairs:   the places of words that belong together; only `EntityGuided` needs them.
    pooled:  [p], CLIP's pooled output, for UNets that take it (SDXL); else None.
    teacher_pooled: that of the teacher's CLIP.
    """

    clip: Tensor
    llm: Features
    teacher: Tensor | None = None
    pairs: tuple[Pair, ...] = ()
    pooled: Tensor | None = None
    teacher_pooled: Tensor | None = None


@dataclass(frozen=True)
class Example:
    """latent: [c, h, w], scaled as the UNet gets it. text: its caption."""

    latent: Tensor
    text: EncodedText


@dataclass(frozen=True)
class TrainingData:
    """examples: the pictures with their captions. empty: the text "", which stands in for what is dropped.

    kinds: [examples], equal numbers for examples that can be computed as one batch, see `numbered`; None: all can.
    fetch: is called before each step with the indices of its examples, for data that are read together.
    """

    examples: Sequence[Example]
    empty: EncodedText
    kinds: Tensor | None = None
    fetch: Callable[[Sequence[int]], None] = lambda _: None


def kind_of(latent: Tensor, text: EncodedText) -> tuple[object, ...]:
    """What two examples must share to be computed as one batch."""
    return latent.shape, text.clip.shape, len(text.llm.rows.row_of)


def numbered(kinds: Iterable[Hashable]) -> Tensor | None:
    """Equal numbers for equal kinds; None if all are equal."""
    numbers: dict[Hashable, int] = {}
    found = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
    return torch.tensor(found) if len(numbers) > 1 else None


@dataclass(frozen=True)
class Drawn:
    """An example as one step sees it.

    clip, llm: what the halves read. They may read different texts; llm is None where the LLM's half is left out.
    noise:     as large as the latent.
    timestep:  how noisy the latent becomes.
    pairs:     words that belong together, by those of their tokens that are seen.
    alone:     whether the UNet sees the fused LLM tokens without CLIP's.
    pooled:    of the text that CLIP reads, see `EncodedText`.
    place:     equal for one example with several noises, whose text is then fused once; None: it has one noise.
    """

    latent: Tensor
    clip: Tensor
    llm: Features | None
    teacher: Tensor | None
    noise: Tensor
    timestep: int
    pairs: tuple[Pair, ...] = ()
    alone: bool = False
    pooled: Tensor | None = None
    teacher_pooled: Tensor | None = None
    place: int | None = None

    @property
    def shapes(self) -> tuple[object, ...]:
        """What must be equal in a batch."""
        positions = None if self.llm is None else len(self.llm.rows.row_of)
        teacher = None if self.teacher is None else self.teacher.shape
        return self.latent.shape, self.clip.shape, positions, teacher, self.alone


@dataclass(frozen=True)
class Batch:
    """Examples of equal shapes, on one device.

    latents, noise: [b, c, h, w]. timesteps: [b].
    clip:    [t, n, d], of each text. An example that is there with several noises has one text for all of them.
    llm:     [t, r, w], the computed rows of the LLM's states, padded with zeros to the longest; None: left out.
    row_of:  [t, l], which row stands at each position.
    text_of: [b], each example's text; None: each has its own.
    teacher: [b, m, d], or None.
    pairs:   of each example, see `EncodedText`.
    alone:   see `Drawn`.
    pooled:  [b, p], or None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    clip: Tensor
    llm: Tensor | None
    row_of: Tensor | None
    text_of: Tensor | None
    teacher: Tensor | None
    pairs: Sequence[Sequence[Pair]] = ()
    alone: bool = False
    pooled: Tensor | None = None
    teacher_pooled: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Length of the context."""
        own = 0 if self.alone else self.clip.shape[1]
        return own + (0 if self.row_of is None else self.row_of.shape[1])

    def context(self, adapter: CrossAdapter) -> Tensor:
        """CLIP's tokens, followed by the fused LLM tokens: [b, n + l, d], or [b, l, d] if these are seen alone.

        The adapter fuses each LLM token on its own, so it computes equal rows once, and rows of zeros do no harm.
        """
        if self.llm is None or self.row_of is None:
            return self.clip_context
        fused = adapter(self.clip, self.llm)
        index = self.row_of[..., None].expand(-1, -1, fused.shape[-1])
        tokens = fused.gather(1, index)
        return self.of_each(tokens if self.alone else torch.cat([self.clip, tokens], dim=1))

    @property
    def clip_context(self) -> Tensor:
        """CLIP's tokens alone, [b, n, d]."""
        return self.of_each(self.clip)

    def of_each(self, tokens: Tensor) -> Tensor:
        """The texts' tokens, [t, n, d] → those of the examples, [b, n, d]."""
        return tokens if self.text_of is None else tokens[self.text_of]


def batches(drawn: Sequence[Drawn], device: torch.device) -> Iterator[Batch]:
    """Groups examples of equal shapes, in the order of their first.

    Pictures of several sizes, prompts in several chunks and recipes that drop the padding therefore need no rule of
    their own, and no token is added that the UNet would not see while it samples.
    """
    groups: dict[tuple[object, ...], list[Drawn]] = {}
    for one in drawn:
        groups.setdefault(one.shapes, []).append(one)
    for group in groups.values():
        yield collate(group, device)


def collate(group: Sequence[Drawn], device: torch.device) -> Batch:
    def stack(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([tensor.float() for tensor in tensors]).to(device)

    def stack_given(tensors: Iterable[Tensor | None]) -> Tensor | None:
        given = [tensor for tensor in tensors if tensor is not None]
        return stack(given) if given else None

    texts: list[Drawn] = []
    text_of = []
    for one in group:
        if not texts or one.place is None or one.place != texts[-1].place:
            texts.append(one)
        text_of.append(len(texts) - 1)
    features = [one.llm for one in texts if one.llm is not None]
    most = max((len(one.states) for one in features), default=0)
    return Batch(
        latents=stack([one.latent for one in group]),
        noise=stack([one.noise for one in group]),
        timesteps=torch.tensor([one.timestep for one in group], device=device),
        clip=stack([one.clip for one in texts]),
        llm=stack([pad(one.states, (0, 0, 0, most - len(one.states))) for one in features])
        if features
        else None,
        row_of=torch.stack([one.rows.row_of for one in features]).to(device) if features else None,
        text_of=torch.tensor(text_of, device=device) if len(texts) < len(group) else None,
        teacher=stack_given(one.teacher for one in group),
        pairs=[one.pairs for one in group],
        alone=group[0].alone,
        pooled=stack_given(one.pooled for one in group),
        teacher_pooled=stack_given(one.teacher_pooled for one in group),
    )
