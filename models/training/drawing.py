"""Everything random in a training. The draws for an example depend on the seed and its place alone, so a resumed run
goes on as if it had never stopped, any process can draw its share, and no state of a random generator must be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..features.features import Features
from .data import Drawn, EncodedText, Example, Pair, TrainingData
from .ranks import ALONE, Ranks
from .settings import Drops, Settings


def generator(*origin: object) -> torch.Generator:
    """A generator on the CPU, whose numbers are the same on every device, seeded by the given values."""
    digest = hashlib.sha256(repr(origin).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def draw_step(
    data: TrainingData, settings: Settings, timesteps: int, step: int, ranks: Ranks = ALONE
) -> Iterator[list[Drawn]]:
    """This process's share of one step: `accumulate` lists of `batch_size` examples, each with `noises` noises.

    The shares of several processes are, together, what one process would draw with a larger batch.

    timesteps: length of the noise schedule. step: counted from 0.
    """
    first, size = step * settings.accumulate, settings.batch_size
    numbers = range(first, first + settings.accumulate)
    batches = [(number * ranks.count + ranks.number) * size for number in numbers]
    data.fetch([shuffled(batch + place, data, settings) for batch in batches for place in range(size)])
    for batch in batches:
        places = range(batch, batch + size)
        yield [one for place in places for one in draw_example(data, place, settings, timesteps)]


def draw_example(data: TrainingData, place: int, settings: Settings, timesteps: int) -> Iterator[Drawn]:
    """An example with each of its noises. place: the example's place in the order of all rounds through the data."""
    source = generator(settings.seed, "example", place)
    example = data.examples[shuffled(place, data, settings)]
    text = draw_text(data, example, settings.drops, torch.rand((), generator=source).item())
    for _ in range(settings.noises):
        timestep = int(torch.randint(timesteps, (), generator=source))
        noise = torch.randn(example.latent.shape, generator=source)
        yield Drawn(
            example.latent,
            text.clip,
            text.llm,
            text.teacher,
            noise,
            timestep,
            text.pairs,
            text.alone,
            text.pooled,
            text.teacher_pooled,
            place if settings.noises > 1 else None,
        )


@dataclass(frozen=True)
class SeenText:
    """What CLIP, the LLM and the teacher read. llm is None where that half is left out. The others: see `Drawn`."""

    clip: Tensor
    llm: Features | None
    teacher: Tensor | None
    pairs: tuple[Pair, ...]
    pooled: Tensor | None
    teacher_pooled: Tensor | None
    alone: bool = False


def draw_text(data: TrainingData, example: Example, drops: Drops, chance: float) -> SeenText:
    """chance: uniform in [0, 1), decides on what is dropped.

    The teacher reads "" where the student gets no text at all, and the full text otherwise: a student that misses one
    half should still predict what the teacher does.
    """
    text, empty = example.text, data.empty
    if chance < drops.text:
        return SeenText(empty.clip, empty.llm, empty.teacher, (), empty.pooled, empty.teacher_pooled)
    if chance < drops.text + drops.llm:
        pairs = seen_pairs(text, lambda place: place < len(text.clip))
        return SeenText(text.clip, None, text.teacher, pairs, text.pooled, text.teacher_pooled)
    if chance < drops.text + drops.llm + drops.clip + drops.clip_tokens:
        alone = chance >= drops.text + drops.llm + drops.clip
        # The LLM's tokens move if CLIP reads "" in fewer chunks, or if its tokens are not seen.
        moved = (0 if alone else len(empty.clip)) - len(text.clip)
        pairs = seen_pairs(text, lambda place: place >= len(text.clip))
        pairs = tuple((tuple(p + moved for p in a), tuple(p + moved for p in b)) for a, b in pairs)
        return SeenText(empty.clip, text.llm, text.teacher, pairs, empty.pooled, text.teacher_pooled, alone)
    return SeenText(text.clip, text.llm, text.teacher, text.pairs, text.pooled, text.teacher_pooled)


def seen_pairs(text: EncodedText, is_seen: Callable[[int], bool]) -> tuple[Pair, ...]:
    """The pairs by those tokens that are seen. A pair goes if nothing of one of its words is."""
    found = [tuple(tuple(filter(is_seen, word)) for word in pair) for pair in text.pairs]
    return tuple((attribute, entity) for attribute, entity in found if attribute and entity)


def shuffled(place: int, data: TrainingData, settings: Settings) -> int:
    """The example at a place of an endless sequence, in which each round holds every example once."""
    turn, within = divmod(place, len(data.examples))
    return int(order(data.kinds, len(data.examples), settings.batch_size, settings.seed, turn)[within])


@lru_cache(maxsize=2)
def order(kinds: Tensor | None, count: int, batch_size: int, seed: int, turn: int) -> Tensor:
    """The order of the examples in one round. A step may see the end of one round and the start of the next.

    Examples of one kind are put into the same batches. What is left over of all kinds stands at both ends of the
    round, so that whole batches begin where the steps' do.

    kinds: see `TrainingData`.
    """
    source = generator(seed, "round", turn)
    mixed = torch.randperm(count, generator=source)
    if kinds is None:
        return mixed
    mixed = mixed[kinds[mixed].argsort(stable=True)]
    _, counts = kinds[mixed].unique_consecutive(return_counts=True)
    whole: list[Tensor] = []
    left: list[Tensor] = []
    for group in mixed.split(counts.tolist()):
        *batches, last = group.split(batch_size)
        whole += batches
        (whole if len(last) == batch_size else left).append(last)
    before = -turn * count % batch_size  # examples until the next step begins
    while whole and sum(map(len, left)) < before:
        left.append(whole.pop())
    rest = torch.cat([torch.empty(0, dtype=torch.int64), *left])
    chosen = [whole[index] for index in torch.randperm(len(whole), generator=source)]
    return torch.cat([rest[:before], *chosen, rest[before:]])
