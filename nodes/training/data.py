"""The data of a graph: pictures or latents with their captions, as CLIP and the LLM read them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...models.errors import WrongTraining
from ...models.recipe import Recipe
from ...models.training.data import EncodedText, Example, TrainingData, kind_of, numbered
from ...models.training.standard import Standard, some
from ...models.training.stored import StoredTexts
from .. import host
from ..fused_clip import FusedCLIP
from ..fusion import Fusion
from ..managed import ManagedLLM
from .reading import Reader, ordinary, read_all
from .teaching import Context
from .words import words_of

log = logging.getLogger(__name__)

LATENT_CHANNELS = 4  # of the VAEs of SD1.5, SD2 and SDXL
TOGETHER = 64  # captions that are read at once for their scale, where they are on no disk

Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrainingSet:
    """What Training Set gives and Train Cross-Adapter takes.

    latents: [c, h, w] each, as ComfyUI's VAE gives them. texts: the caption of each.
    encoded: text → its states, for every caption and for "".
    recipe:  with which the LLM read them.
    llm:     what the adapter's file says of the LLM, see `LLMFacts.entry`.
    kinds:   which of them can be computed together, see `TrainingData`.
    origin:  what decides on latents and states, where that is known without reading them all; None: it is not.
    """

    latents: Sequence[Tensor]
    texts: Sequence[str]
    encoded: Mapping[str, EncodedText]
    recipe: Recipe
    llm: Mapping[str, str | int]
    kinds: Tensor | None = None
    origin: str | None = None

    def standard(self) -> Standard:
        """The scale of the LLM's states."""
        captions = list(self.encoded)
        chosen = [captions[index] for index in some(len(captions))]
        return Standard.of(
            self.encoded[text]
            for first in range(0, len(chosen), TOGETHER)
            for text in self.fetched(chosen[first : first + TOGETHER])
        )

    def fetched(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts, after those whose states are on no disk were read together. See `StoredTexts.fetch`."""
        if isinstance(self.encoded, StoredTexts):
            self.encoded.fetch(texts)
        return texts

    def data(
        self,
        scale: Scale,
        standard: Standard,
        teacher: Mapping[str, Context] | None = None,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> TrainingData:
        """scale: the UNet's own scaling of latents. teacher: text → what the teacher's UNet reads of it.

        aside: inside of what it gives, other models than those that learn may be loaded.
        """
        examples = Examples(self, scale, standard, teacher or {}, aside)
        return TrainingData(examples, examples.text(""), self.kinds, examples.fetch)

    def _comfy_cache_tensors(self) -> list[Tensor]:
        """What ComfyUI 0.38 and newer count when memory is short and they choose which outputs to drop.

        They look for this name on objects into which they cannot see. A set that counted as nothing would be dropped
        last, after smaller outputs.
        """
        states = self.encoded.values()
        return [*self.latents, *(text.clip for text in states), *(text.llm.states for text in states)]


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """The pairs of a training set as the trainer sees them, each made when it is asked for."""

    pairs: TrainingSet
    scale: Scale
    standard: Standard
    teacher: Mapping[str, Context]
    aside: Callable[[], AbstractContextManager[None]]

    def __len__(self) -> int:
        return len(self.pairs.latents)

    def __getitem__(self, index: Any) -> Any:
        with self.aside():
            latent = self.pairs.latents[index]
        return Example(self.scale(latent), self.text(self.pairs.texts[index]))

    def fetch(self, indices: Sequence[int]) -> None:
        """See `TrainingData`."""
        with self.aside():
            self.pairs.fetched([self.pairs.texts[index] for index in indices])

    def text(self, text: str) -> EncodedText:
        with self.aside():
            states = self.standard.apply(self.pairs.encoded[text])
        context = self.teacher.get(text)
        if context is None:
            return states
        # Where the student's CLIP gives no pooled output that its UNet reads, neither does the teacher's.
        pooled = None if states.pooled is None else context.pooled
        return replace(states, teacher=context.states, teacher_pooled=pooled)


def training_set(
    latents: Sequence[Tensor], texts: Sequence[str], fusion: Fusion, clip: Any, pairs: Sequence[str] = ()
) -> TrainingSet:
    """Encodes the captions. Pictures without a caption are named in the log and left out.

    pairs: the words that belong together in each caption, see `words_of`; none: in no caption.
    Raises: WrongTraining if pictures and captions do not pair up, and what encoding raises.
    """
    if len(latents) != len(texts):
        raise WrongTraining(
            f"There are {len(latents)} pictures and {len(texts)} captions. Each picture needs one caption, as Load "
            "Image-Text (from Folder) gives them."
        )
    odd = next((latent for latent in latents if latent.ndim != 3 or latent.shape[0] != LATENT_CHANNELS), None)
    if odd is not None:
        raise WrongTraining(
            f"A latent has the shape {list(odd.shape)}; those of SD1.5, SD2 and SDXL have {LATENT_CHANNELS} channels, "
            "height and width. Use the VAE of the checkpoint that the adapter is trained for."
        )
    empty = [str(index + 1) for index, text in enumerate(texts) if not text.strip()]
    if empty:
        log.warning(
            "%d of %d pictures have no caption and are left out: %s.",
            len(empty),
            len(texts),
            ", ".join(empty),
        )
    if pairs and len(pairs) != len(texts):
        raise WrongTraining(
            f"There are {len(texts)} captions and {len(pairs)} texts of pairs. Give one for each caption."
        )
    words = dict(zip(texts, map(words_of, pairs), strict=True)) if pairs else {}
    kept = [(latent, text) for latent, text in zip(latents, texts, strict=True) if text.strip()]
    if not kept:
        raise WrongTraining("There is no picture with a caption to learn from. Give at least one of each.")
    fused, distinct = FusedCLIP.around(clip, fusion), list(dict.fromkeys(["", *(text for _, text in kept)]))
    encoded = read_all(Reader(fused, words), distinct, host.progress(len(distinct)))
    return TrainingSet(
        [ordinary(latent) for latent, _ in kept],
        [text for _, text in kept],
        encoded,
        fusion.adapter.recipe,
        identity_of(fusion.llm),
        numbered(kind_of(latent, encoded[text]) for latent, text in kept),
    )


def identity_of(llm: ManagedLLM) -> dict[str, str | int]:
    """What an adapter's file says of the LLM that it was trained with."""
    return llm.llm.file.facts.entry


def latents_of(images: Sequence[Tensor], vae: Any) -> list[Tensor]:
    """Pictures [b, h, w, 3] → a latent [c, h, w] for each. Shows progress."""
    step = host.progress(len(images))
    found: list[Tensor] = []
    for image in images:
        found += vae.encode(image[..., :3])
        step()
    return found
