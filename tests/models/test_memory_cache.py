"""What was read is kept as long as there is room, by what was asked of which LLM."""

import torch

from llm4gen.models.encoders.rows import real_rows
from llm4gen.models.features.features import Features
from llm4gen.models.features.memory_cache import MemoryCache

ONE = 4 * 8 * 4  # bytes of one below


def features(value):
    return Features(torch.full((4, 8), float(value)), real_rows(4))


def test_the_oldest_go_first_and_use_keeps_young():
    cache = MemoryCache(limit=2 * ONE)
    cache.put("one", features(1))
    cache.put("two", features(2))
    assert cache.get("one").states[0, 0] == 1
    cache.put("three", features(3))
    assert cache.get("two") is None
    assert [cache.get(key).states[0, 0].item() for key in ("one", "three")] == [1, 3]
    assert cache.size == 2 * ONE


def test_what_is_put_twice_counts_once():
    cache = MemoryCache(limit=2 * ONE)
    for key in ("one", "two", "one", "one"):
        cache.put(key, features(0))
    assert cache.size == 2 * ONE and cache.get("two") is not None


def test_what_is_larger_than_the_room_is_not_kept():
    cache = MemoryCache(limit=ONE - 1)
    cache.put("one", features(1))
    assert cache.get("one") is None and cache.size == 0
