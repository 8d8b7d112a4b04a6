"""What travels on our wires: an LLM and an adapter, each under the host's memory management."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..models.cross_adapter import CrossAdapter
from ..models.errors import OutOfMemory
from ..models.feature_cache import FeatureCache
from ..models.feature_files import FeatureFiles
from ..models.llm import LLM, Features
from ..models.recipe import Recipe
from ..models.widths import DTYPES
from . import folders, host

# One for all LLMs of the server: what was read is not read again when a graph's loader runs anew.
READ = FeatureCache()


class HostedLLM:
    """An LLM whose weights are loaded when there is something to read that it has not read before."""

    def __init__(self, llm: LLM, dtype: str, device: str):
        self.llm = llm
        self.dtype = dtype
        self.device = device
        self.loaded: tuple[int, host.Hosted] | None = None

    @property
    def patcher(self):
        """By this name the host finds the model in a node's output, once it is loaded."""
        return self.loaded[1].patcher if self.loaded else None

    def features(self, ids: tuple[int, ...], recipe: Recipe) -> Features:
        """The LLM's states of a tokenized prompt, fp32, where conditioning lies."""
        key = self.key(ids, recipe)
        features = READ.get(key)
        if features is None:
            features = self.kept(key) or self.read_and_keep(key, ids, recipe)
            READ.put(key, features)
        return features

    def key(self, ids: tuple[int, ...], recipe: Recipe) -> tuple:
        """All that decides on the states."""
        asked = (recipe.tokens, recipe.padding, self.llm.depth(recipe))
        return (self.llm.source.identity, self.dtype, self.device, asked, ids)

    def kept(self, key: tuple) -> Features | None:
        """What was kept on disk, if the user wants that."""
        folder = folders.feature_folder()
        features = FeatureFiles(folder).get(key) if folder else None
        return features and Features(host.as_conditioning(features.states), features.rows)

    def read_and_keep(self, key: tuple, ids: tuple[int, ...], recipe: Recipe) -> Features:
        folder, features = folders.feature_folder(), self.read(ids, recipe)
        if folder:
            FeatureFiles(folder).put(key, features)
        return features

    def read(self, ids: tuple[int, ...], recipe: Recipe) -> Features:
        """Out of memory, all models make room, and it is tried once more.

        Raises: OutOfMemory.
        """
        try:
            return self.read_once(ids, recipe)
        except Exception as error:
            if not host.ran_out_of_memory(error):
                raise
        host.make_room()
        try:
            return self.read_once(ids, recipe)
        except Exception as error:
            if not host.ran_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"The memory is not enough for {self.llm.source.path.name} (dtype {self.dtype}), with all other models "
                "put away. In Load LLM Encoder choose bf16, or a smaller file (tools/convert.py makes one), or "
                "the device cpu if it is the GPU's memory that is short."
            ) from error

    def read_once(self, ids: tuple[int, ...], recipe: Recipe) -> Features:
        hosted = self.load(self.llm.depth(recipe))
        device = hosted.ready()
        products = host.product_dtype(hosted.model.dtype, device, self.dtype)
        features = self.llm.read(
            hosted.model, ids, recipe, device=device, products=products, progress=host.progress
        )
        return Features(host.as_conditioning(features.states), features.rows)

    def load(self, depth: int) -> host.Hosted:
        """The LLM up to a layer; what was loaded to another is let go first."""
        if self.loaded is None or self.loaded[0] != depth:
            self.loaded = None
            dtype = None if self.dtype == "auto" else DTYPES[self.dtype]
            model = self.llm.source.load(depth, dtype=dtype, operations=host.LAYERS, progress=host.progress)
            self.loaded = depth, host.Hosted(model, self.device)
        return self.loaded[1]


class HostedAdapter(host.Hosted):
    """Knows how its LLM wants to be fed."""

    def __init__(self, adapter: CrossAdapter, recipe: Recipe):
        super().__init__(adapter)
        self.adapter = adapter
        self.recipe = recipe

    def fuse(self, clip: Tensor, features: Features) -> Tensor:
        """CLIP states [b, n, c] and the LLM's → fused LLM tokens [b, l, c] at every position."""
        return self.at_every_position(self.adapter, clip, features)

    def attention(self, clip: Tensor, features: Features) -> Tensor:
        """What `fuse` has each LLM token see of each CLIP token: [b, heads, l, n]."""
        return self.at_every_position(self.adapter.attention, clip, features)

    def at_every_position(self, compute: Callable, clip: Tensor, features: Features) -> Tensor:
        """Rows that are equal are computed once."""
        device = self.ready()
        llm = features.states.to(device).expand(len(clip), -1, -1)
        return host.as_conditioning(features.rows.spread(compute(clip.to(device), llm)))
