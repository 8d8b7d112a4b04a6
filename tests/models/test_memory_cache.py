"""Features in memory: the most recently used are kept, as many as the limit allows."""

import torch

from llm4gen.models.encoders.rows import real_rows
from llm4gen.models.features.features import Features
from llm4gen.models.features.memory_cache import MemoryCache

SIZE = 4 * 8 * 4  # bytes of the features below


def features(value):
    """Features of 4 tokens, all of whose numbers are `value`."""
    return Features(torch.full((4, 8), float(value)), real_rows(4))


def test_the_least_recently_used_features_are_dropped_first():
    cache = MemoryCache(limit=2 * SIZE)
    cache.put("one", features(1))
    cache.put("two", features(2))
    assert cache.get("one").states[0, 0] == 1
    cache.put("three", features(3))
    assert cache.get("two") is None
    assert [cache.get(key).states[0, 0].item() for key in ("one", "three")] == [1, 3]
    assert cache.size == 2 * SIZE


def test_features_that_are_put_twice_count_once():
    cache = MemoryCache(limit=2 * SIZE)
    for key in ("one", "two", "one", "one"):
        cache.put(key, features(0))
    assert cache.size == 2 * SIZE and cache.get("two") is not None


def test_features_larger_than_the_limit_are_not_kept():
    cache = MemoryCache(limit=SIZE - 1)
    cache.put("one", features(1))
    assert cache.get("one") is None and cache.size == 0
