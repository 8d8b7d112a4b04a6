"""Features on disk: a file is written whole or not at all, checked when it is read, and the folder stays bounded."""

import os
import random

import pytest
import torch

from llm4gen.models.encoders.rows import distinct_rows
from llm4gen.models.features.disk_cache import DiskCache
from llm4gen.models.features.features import Features

KEY = ("identity", "auto", (256, "keep", 24), (1, 2, 3))


def features(value=0):
    """Features of a prompt of 3 tokens, padded to 256."""
    rows = distinct_rows(3, 256)
    return Features(torch.arange(len(rows.positions) * 8.0).view(-1, 8) + value, rows)


def equal(a, b):
    """Whether two features have the same states at every position."""
    return torch.equal(a.rows.expand(a.states), b.rows.expand(b.states))


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "features")


def test_features_are_found_again_by_another_cache_over_the_same_folder(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, features())
    found = DiskCache(cache.folder).get(KEY)
    assert torch.equal(found.states, features().states) and equal(found, features())
    assert found.rows.real == 3 and torch.equal(found.rows.positions, features().rows.positions)


@pytest.mark.parametrize("part", range(4))
def test_a_key_that_differs_in_any_part_finds_nothing(part, cache):
    cache.put(KEY, features())
    other = [*KEY]
    other[part] = (*KEY[part], 7) if isinstance(KEY[part], tuple) else KEY[part] + "x"
    assert cache.get(tuple(other)) is None


def test_a_file_with_any_byte_damaged_is_deleted(cache):
    cache.put(KEY, features())
    original = cache.path(KEY).read_bytes()
    for index in random.Random(0).sample(range(len(original)), 100):
        damaged = bytearray(original)
        damaged[index] ^= 1 << index % 8
        cache.path(KEY).write_bytes(damaged)
        assert cache.get(KEY) is None, index
        assert not cache.path(KEY).exists()
    cache.path(KEY).write_bytes(original)
    assert equal(cache.get(KEY), features())


@pytest.mark.parametrize("length", [0, 10, 32, 40, -1])
def test_a_file_that_was_cut_short_is_deleted(length, cache):
    cache.put(KEY, features())
    cache.path(KEY).write_bytes(cache.path(KEY).read_bytes()[:length])
    assert cache.get(KEY) is None and not cache.path(KEY).exists()


def test_a_file_under_the_name_of_another_key_is_not_used(cache):
    cache.put(KEY, features())
    os.replace(cache.path(KEY), cache.path("other"))
    assert cache.get("other") is None


def test_the_least_recently_used_files_are_deleted_first(cache):
    for number, key in enumerate("abc"):
        cache.put(key, features(number))
        os.utime(cache.path(key), (number, number))
    assert equal(cache.get("a"), features(0))  # `get` makes it the last used
    cache.limit = 3 * cache.path("a").stat().st_size
    cache.put("d", features(3))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]


def test_a_folder_that_cannot_be_written_raises_no_error(tmp_path):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    cache = DiskCache(tmp_path / "file" / "features")
    cache.put(KEY, features())
    assert cache.get(KEY) is None


def test_old_half_written_files_are_deleted_and_recent_ones_are_not(cache):
    cache.put(KEY, features())
    old, recent = cache.folder / ".old.part", cache.folder / ".recent.part"
    for part in (old, recent):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.put("next", features())
    assert not old.exists() and recent.exists()
