"""The data of a graph: pictures or latents with their captions, as CLIP and the LLM read them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...models.errors import WrongTraining
from ...models.features.features import Features
from ...models.llm import content_digest
from ...models.recipe import Recipe
from ...models.training.data import EncodedText, Example, TrainingData, kind_of, numbered
from ...models.training.standard import Standard, some
from .. import host
from ..fused_clip import CLIP_G, LLM_TOKENS, FusedCLIP, without_llm
from ..fusion import Fusion
from ..managed import ManagedLLM
from .words import Words, places_of, words_of

log = logging.getLogger(__name__)

LATENT_CHANNELS = 4  # of the VAEs of SD1.5, SD2 and SDXL

Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrainingSet:
    """What Training Set gives and Train Cross-Adapter takes.

    latents: [c, h, w] each, as ComfyUI's VAE gives them. texts: the caption of each.
    encoded: text → its states, for every caption and for "".
    recipe:  with which the LLM read them.
    llm:     the LLM's name, and a digest of what is in its files.
    kinds:   which of them can be computed together, see `TrainingData`.
    origin:  what decides on latents and states, where that is known without reading them all; None: it is not.
    """

    latents: Sequence[Tensor]
    texts: Sequence[str]
    encoded: Mapping[str, EncodedText]
    recipe: Recipe
    llm: Mapping[str, str]
    kinds: Tensor | None = None
    origin: str | None = None

    def standard(self) -> Standard:
        """The scale of the LLM's states."""
        captions = list(self.encoded)
        return Standard.of(self.encoded[captions[index]] for index in some(len(captions)))

    def data(
        self, scale: Scale, standard: Standard, teacher: Mapping[str, Context] | None = None
    ) -> TrainingData:
        """scale: the UNet's own scaling of latents. teacher: text → what the teacher's UNet reads of it."""
        examples = Examples(self, scale, standard, teacher or {})
        return TrainingData(examples, examples.text(""), self.kinds)

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

    def __len__(self) -> int:
        return len(self.pairs.latents)

    def __getitem__(self, index: Any) -> Any:
        return Example(self.scale(self.pairs.latents[index]), self.text(self.pairs.texts[index]))

    def text(self, text: str) -> EncodedText:
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
    step = host.progress(len(distinct))
    encoded = {}
    for text in distinct:
        encoded[text] = encode(fused, text, words.get(text, ()))
        step()
    return TrainingSet(
        [ordinary(latent) for latent, _ in kept],
        [text for _, text in kept],
        encoded,
        fusion.adapter.recipe,
        identity_of(fusion.llm),
        numbered(kind_of(latent, encoded[text]) for latent, text in kept),
    )


def identity_of(llm: ManagedLLM) -> dict[str, str]:
    """What an adapter's file says of the LLM that it was trained with."""
    path = llm.llm.file.path
    return {"name": path.name, "sha256_of_ends": content_digest(path)}


def encode(fused: FusedCLIP, text: str, words: Sequence[Words] = ()) -> EncodedText:
    """The states of a caption, as LLM4GEN Conditioning would get them, but that parentheses are ordinary characters.

    words: those that belong together, for the entity-guided loss.
    """
    tokens = fused.tokenize(text, disable_weights=True)
    states, pooled = fused.plain().encode_from_tokens(without_llm(tokens), return_pooled=True)
    fused.check_fit(tokens, states)
    features = fused.fusion.features(tokens[LLM_TOKENS][0])
    return EncodedText(
        ordinary(states[0]),
        Features(ordinary(half(features.states)), features.rows),
        pairs=places_of(fused, text, words) if words else (),
        pooled=ordinary(pooled[0]) if CLIP_G in tokens else None,
    )


@dataclass(frozen=True)
class Context:
    """What a CLIP gives a UNet for a text: states [m, c], and the pooled output [p] if it has one."""

    states: Tensor
    pooled: Tensor | None


def contexts(clip: Any, texts: Iterable[str]) -> dict[str, Context]:
    """For each text what a CLIP gives a UNet, such as the fused tokens of LLM4GEN CLIP."""
    texts = list(texts)
    step = host.progress(len(texts))
    found = {}
    for text in texts:
        tokens = clip.tokenize(text, disable_weights=True)
        states, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        found[text] = Context(ordinary(half(states[0])), None if pooled is None else ordinary(pooled[0]))
        step()
    return found


def latents_of(images: Sequence[Tensor], vae: Any) -> list[Tensor]:
    """Pictures [b, h, w, 3] → a latent [c, h, w] for each. Shows progress."""
    step = host.progress(len(images))
    found: list[Tensor] = []
    for image in images:
        found += vae.encode(image[..., :3])
        step()
    return found


def ordinary(tensor: Tensor) -> Tensor:
    """A copy in main memory that autograd may keep; nodes run in inference mode, whose tensors it refuses."""
    with torch.inference_mode(False):
        return tensor.detach().to("cpu", copy=True)


def half(states: Tensor) -> Tensor:
    """States in half of their memory, unless they do not fit into fp16's range."""
    small = states.half()
    return small if small.isfinite().all() else states
