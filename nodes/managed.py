"""What travels on this pack's wires: an LLM and an adapter, each under ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from ..models.cross_adapter import CrossAdapter, CrossAdapterConfig
from ..models.errors import OutOfMemory
from ..models.features.features import Features
from ..models.features.store import FeatureStore
from ..models.files.values import DTYPES
from ..models.llm import LLM, Encoder
from ..models.recipe import Recipe
from ..models.tokens import Tokens
from . import folders, host

# Shared by all LLMs of the server, so that a text is not encoded again when a loader node runs again.
FEATURES = FeatureStore(folder=folders.feature_folder, move=host.as_conditioning)


class ManagedLLM:
    """An LLM whose weights are loaded when a text must be encoded for the first time.

    dtype, device: as chosen in Load LLM Encoder. For `auto`, the dtype that ComfyUI was started with counts.
    """

    def __init__(self, llm: LLM, dtype: str, device: str):
        self.llm = llm
        self.dtype = host.encoder_dtype(dtype)
        self.device = device
        self.read: Mapping[tuple[int, ...], Features] = {}  # see `having_read`
        # The number of layers that are loaded, and the model.
        self.loaded: tuple[int, host.ManagedModel[Encoder]] | None = None

    @property
    def patcher(self) -> Any:
        """See `ManagedModel`; None until the weights are loaded."""
        return self.loaded[1].patcher if self.loaded else None

    def is_dynamic(self) -> bool:
        """See `ManagedModel`. Without weights, dropping it from the cache would free nothing."""
        return self.loaded is None or self.loaded[1].is_dynamic()

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.llm.file.config.width

    def tokenize(self, text: str, recipe: Recipe, weights: Sequence[float] = ()) -> Tokens:
        """See `models.tokens.tokenize_for_llm`."""
        return self.llm.tokenize(text, recipe, weights)

    def features(self, ids: tuple[int, ...], recipe: Recipe) -> Features:
        """The hidden states of a tokenized prompt, from the cache if they are there. Raises: see `encode`."""
        if ids in self.read:
            return self.read[ids]
        key = self.key(ids, recipe)
        features = FEATURES.get(key)
        if features is None:
            features = self.encode(ids, recipe)
            FEATURES.put(key, features)
        return features

    @contextmanager
    def having_read(self, read: Mapping[tuple[int, ...], Features]) -> Iterator[None]:
        """In the block, the hidden states of these prompts come from no cache. All are read with one recipe."""
        self.read = read
        try:
            yield
        finally:
            self.read = {}

    def key(self, ids: tuple[int, ...], recipe: Recipe) -> tuple[Any, ...]:
        """Everything that decides on the features. Files on disk are found by it, so its form must not change."""
        dtype = f"{self.dtype}, products in fp32" if host.is_fp32_forced() else self.dtype
        fed = (recipe.tokens, recipe.padding, self.llm.depth(recipe))
        return (self.llm.file.identity, dtype, self.device, fed, ids)

    def encode(self, ids: tuple[int, ...], recipe: Recipe) -> Features:
        """Runs the LLM. Raises: see `encode_all`."""
        (features,) = self.encode_all([ids], recipe)
        return features

    def encode_all(self, prompts: Sequence[tuple[int, ...]], recipe: Recipe) -> list[Features]:
        """Runs the LLM on all prompts at once. Its states end on ComfyUI's device for conditioning, and in no cache.

        On out-of-memory, unloads all models and retries once, then reads each prompt alone.
        Raises: OutOfMemory, WrongRecipe, and the errors of `LLMFile.load`.
        """
        try:
            return self.encode_once(prompts, recipe)
        except Exception as error:
            if not host.is_out_of_memory(error):
                raise
        try:
            host.unload_all_models()
            return self.encode_once(prompts, recipe)
        except Exception as error:
            if not host.is_out_of_memory(error):
                raise
            if len(prompts) == 1:
                raise OutOfMemory(
                    f"There is not enough memory for {self.llm.file.path.name} (dtype {self.dtype}), even with all "
                    "other models unloaded. In Load LLM Encoder choose bf16, or a smaller file (tools/convert.py makes "
                    "one), or the device cpu if it is the GPU's memory that is short."
                ) from error
        return [self.encode(ids, recipe) for ids in prompts]

    def encode_once(self, prompts: Sequence[tuple[int, ...]], recipe: Recipe) -> list[Features]:
        managed = self.load(self.llm.depth(recipe))
        device = managed.ready()
        features = self.llm.encode_all(
            managed.model,
            prompts,
            recipe,
            device=device,
            compute_dtype=host.compute_dtype(managed.model.dtype, device, self.dtype),
            progress=host.progress,
        )
        return [one.moved(host.as_conditioning) for one in features]

    def load(self, depth: int) -> host.ManagedModel[Encoder]:
        """The first `depth` layers. If other layers are loaded, they are dropped first."""
        if self.loaded is None or self.loaded[0] != depth:
            self.loaded = None
            model = self.llm.file.load(
                depth,
                dtype=self.weights_dtype(),
                operations=host.LAYERS,
                progress=host.progress,
                mapped=host.may_map_files(),
            )
            self.loaded = depth, host.ManagedModel(model, self.device)
        return self.loaded[1]

    def weights_dtype(self) -> torch.dtype | None:
        """Which dtype the weights are loaded in; None: the file's."""
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        return host.weights_dtype(DTYPES.get(self.llm.file.dtype_name), host.load_device_of(self.device))


class ManagedAdapter(host.ManagedModel[CrossAdapter]):
    """A Cross-Adapter, with the recipe that says how its LLM is fed.

    training: how it was trained, as the JSON text of its file's metadata, where that is known.
    is_new:   whether its weights are random.
    is_drawn: whether those of its first layer are.
    told_of:  LLMs of which the log has said whether they may be others than the one that it was trained with.
    """

    def __init__(
        self,
        adapter: CrossAdapter,
        recipe: Recipe,
        *,
        training: str | None = None,
        is_new: bool = False,
        is_drawn: bool = False,
    ):
        super().__init__(adapter)
        self.adapter = adapter
        self.recipe = recipe
        self.training = training
        self.is_new = is_new
        self.is_drawn = is_drawn
        self.told_of: WeakSet[ManagedLLM] = WeakSet()

    @classmethod
    def holding(
        cls,
        weights: Mapping[str, Tensor],
        config: CrossAdapterConfig,
        recipe: Recipe,
        *,
        training: str | None = None,
        is_new: bool = False,
        is_drawn: bool = False,
    ) -> ManagedAdapter:
        """An adapter of these weights, as if it had been loaded from a file."""
        adapter = CrossAdapter(config, operations=host.LAYERS, device="meta")
        adapter.load_state_dict(weights, strict=True, assign=True)
        adapter = adapter.eval().requires_grad_(False)
        return cls(adapter, recipe, training=training, is_new=is_new, is_drawn=is_drawn)

    def fuse(self, clip: Tensor, features: Features) -> Tensor:
        """CLIP states [b, n, c] and the LLM's features → fused LLM tokens [b, l, c] at every position."""
        return self.at_every_position(self.adapter, clip, features)

    def attention_weights(self, clip: Tensor, features: Features) -> Tensor:
        """The cross-attention weights of `fuse`: [b, heads, l, n]."""
        return self.at_every_position(self.adapter.attention_weights, clip, features)

    def at_every_position(
        self, compute: Callable[[Tensor, Tensor], Tensor], clip: Tensor, features: Features
    ) -> Tensor:
        """Computes equal rows once, then expands the result to all positions."""
        device = self.ready()
        llm = features.states.to(device).expand(len(clip), -1, -1)
        return host.as_conditioning(features.rows.expand(compute(clip.to(device), llm)))
