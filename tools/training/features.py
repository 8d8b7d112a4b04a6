"""The features of a job's data: latents and states of captions, on the disk as far as they may be."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.pairs import Pair, Problems
from training.pictures import UnreadablePicture

if TYPE_CHECKING:
    from llm4gen.models.training.ranks import Ranks
    from llm4gen.models.training.stored import Store, StoredLatents, StoredTexts
    from llm4gen.nodes.training.data import TrainingSet

log = logging.getLogger(__name__)

CELL = 8  # pixels along a side of one cell of a latent
TRIED = 16  # captions that are read to tell how long that takes


@dataclass(frozen=True)
class Encoders:
    """What reads the data. adapter: its recipe says how the LLM is fed."""

    clip: Any
    vae: Any
    llm: Any
    adapter: Any


def stored_set(
    job: Mapping[str, Any], pairs: Sequence[Pair], problems: Problems, ranks: Ranks, encoders: Encoders
) -> TrainingSet:
    """The training set, whose features are read from the disk. What is not there yet is computed and written.

    What would take more than `features_gb` is computed in the steps, and the log says so. A picture or caption that
    cannot be read is left out, and `problems` names it.
    Raises: WrongTraining.
    """
    from llm4gen.models.errors import WrongTraining  # noqa: PLC0415
    from llm4gen.models.training.data import numbered  # noqa: PLC0415
    from llm4gen.models.training.stored import Store  # noqa: PLC0415
    from llm4gen.nodes import host  # noqa: PLC0415
    from llm4gen.nodes.training.data import TrainingSet, identity_of  # noqa: PLC0415
    from llm4gen.nodes.training.record import digest  # noqa: PLC0415

    folder, limit = job["features"] or job["run"] / "features", int(job["features_gb"] * 1e9)
    if ranks.count > 1:  # each process computes a share, and reads the others' from the disk
        store = Store(folder, limit)
        store.limit = store.size + (limit - store.size) // ranks.count
        Gathered(job, store, encoders).gather(pairs[ranks.number :: ranks.count], Problems())
        ranks.add([torch.zeros(1, device=host.load_device_of("default"))])
    store = Store(folder, limit)
    store.is_full = ranks.count > 1  # the others would not know of what is written now
    found = Gathered(job, store, encoders)
    found.gather(pairs, problems)
    if not found.captions:
        raise WrongTraining("There is no picture with a caption to learn from. Give at least one of each.")
    if ranks.number == 0:
        found.warn_of_what_is_lacking(job["features_gb"])
    return TrainingSet(
        found.latents,
        found.captions,
        found.texts,
        encoders.adapter.recipe,
        identity_of(encoders.llm),
        numbered(found.kinds),
        digest({}, found.latents.keys, [found.texts.key(caption) for caption in found.captions]),
    )


class Gathered:
    """The features of some pairs.

    captions, kinds: of each latent; see `TrainingData` for kinds.
    """

    texts: StoredTexts
    latents: StoredLatents

    def __init__(self, job: Mapping[str, Any], store: Store, encoders: Encoders):
        import folder_paths  # noqa: PLC0415

        from llm4gen.models.files.listing import stamp  # noqa: PLC0415
        from llm4gen.models.training.stored import StoredLatents  # noqa: PLC0415
        from llm4gen.nodes.fused_clip import FusedCLIP  # noqa: PLC0415
        from llm4gen.nodes.fusion import Fusion  # noqa: PLC0415

        self.store, self.encoders, self.resolution = store, encoders, job["resolution"]
        llm, recipe = encoders.llm, encoders.adapter.recipe
        self.fused = FusedCLIP.around(encoders.clip, Fusion(llm, encoders.adapter))
        # CLIP and VAE by their file: an SD1.5 checkpoint lacks one of CLIP's weights, which is then random.
        checkpoint = stamp(Path(folder_paths.get_full_path_or_raise("checkpoints", job["checkpoint"])))
        self.read_by = [checkpoint, repr(llm.key((), recipe)), repr(recipe)]
        self.seen_by = [checkpoint, str(self.resolution)]
        self.latents = StoredLatents(store)
        self.captions: list[str] = []
        self.kinds: list[Any] = []
        self.is_complete = False

    def gather(self, pairs: Sequence[Pair], problems: Problems) -> None:
        """Captions come first: the LLM takes longest to read, so its states have the first right to the room."""
        from llm4gen.models.errors import UnreadableText  # noqa: PLC0415
        from llm4gen.models.training.stored import StoredTexts  # noqa: PLC0415
        from llm4gen.nodes import host  # noqa: PLC0415
        from llm4gen.nodes.training.reading import Reader  # noqa: PLC0415

        words = {pair.caption: pair.words for pair in pairs if pair.words}
        reader = Reader(self.fused, words)

        def key(text: str) -> list[str]:
            return ["text", *self.read_by, *map(repr, words.get(text, ())), text]

        self.texts = StoredTexts(self.store, key, reader)
        positions: dict[str, int | None] = {"": reader.positions("")}
        for pair in pairs:
            if pair.caption not in positions:
                try:
                    positions[pair.caption] = reader.positions(pair.caption)
                except UnreadableText:
                    positions[pair.caption] = None
        readable = [text for text, length in positions.items() if length is not None]
        self.texts.add_all(readable, host.progress(len(readable)))
        step = host.progress(len(pairs))
        for pair in pairs:
            if positions[pair.caption] is None:
                problems.add("left out, with a caption that the tokenizer cannot read", pair.name)
            else:
                self.add(pair, positions[pair.caption], problems)
            step()
        self.is_complete = True

    def add(self, pair: Pair, positions: int | None, problems: Problems) -> None:
        key = ["picture", *self.seen_by, pair.stamp]
        try:
            shape = self.latents.add(key, partial(self.latent, pair), partial(self.shape, pair), pair.repeats)
        except UnreadablePicture as error:
            problems.add(f"left out, unreadable ({error})", pair.name)
            return
        self.captions += [pair.caption] * pair.repeats
        self.kinds += [(shape, positions)] * pair.repeats

    def shape(self, pair: Pair) -> tuple[int, ...]:
        """Of a picture's latent. Raises: UnreadablePicture."""
        width, height = pair.picture(self.resolution).size
        return self.encoders.vae.latent_channels, height // CELL, width // CELL

    @torch.inference_mode()
    def latent(self, pair: Pair) -> torch.Tensor:
        """Raises: UnreadablePicture; WrongTraining if that comes in a step."""
        from llm4gen.models.errors import WrongTraining  # noqa: PLC0415
        from llm4gen.nodes.training.reading import ordinary  # noqa: PLC0415

        try:
            pixels = np.asarray(pair.picture(self.resolution), dtype=np.float32) / 255
        except UnreadablePicture as error:
            if not self.is_complete:
                raise
            raise WrongTraining(
                f"The picture {pair.name} was there when the training began, and now it cannot be read ({error}). Put "
                "it back, and the same command goes on."
            ) from error
        return ordinary(self.encoders.vae.encode(torch.from_numpy(pixels)[None])[0])

    def warn_of_what_is_lacking(self, allowed: float) -> None:
        """Says what will be computed in the steps, and how long that takes, which is tried."""
        texts, pictures = sorted(self.texts.lacking), self.latents.lacking
        parts = []
        if texts:
            tried = texts[:TRIED]
            seconds = timed(lambda: self.texts.fetch(tried)) / len(tried)
            parts.append(f"{len(texts)} of {len(self.texts)} captions ({seconds:.2g} s each)")
        if pictures:
            index = next(i for i, key in enumerate(self.latents.keys) if tuple(key) in pictures)
            seconds = timed(lambda: self.latents[index])
            parts.append(
                f"{len(pictures)} of {len(set(map(tuple, self.latents.keys)))} pictures ({seconds:.2g} s each)"
            )
        if parts:
            log.warning(
                "The features of %s do not fit into the %g GB of features_gb, or the disk of %s is full. They are "
                "computed in each step that sees them, which costs that time. With more room, training is faster and "
                "what is learnt is the same but for rounding.",
                " and of ".join(parts),
                allowed,
                self.store.folder,
            )


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
