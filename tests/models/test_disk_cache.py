"""What was read, kept on disk: whole or not at all, checked, bounded."""

import os
import random

import pytest
import torch

from llm4gen.models.encoders.rows import distinct_rows
from llm4gen.models.features.disk_cache import DiskCache
from llm4gen.models.features.features import Features

KEY = ("identity", "auto", (256, "keep", 24), (1, 2, 3))


def features(value=0):
    rows = distinct_rows(3, 256)
    return Features(torch.arange(len(rows.positions) * 8.0).view(-1, 8) + value, rows)


def same(one, other):
    return torch.equal(one.rows.expand(one.states), other.rows.expand(other.states))


@pytest.fixture
def files(tmp_path):
    return DiskCache(tmp_path / "kept")


def test_what_is_kept_comes_back_to_another_server(files):
    assert files.get(KEY) is None
    files.put(KEY, features())
    back = DiskCache(files.folder).get(KEY)
    assert torch.equal(back.states, features().states) and same(back, features())
    assert back.rows.real == 3 and torch.equal(back.rows.positions, features().rows.positions)


@pytest.mark.parametrize("part", range(4))
def test_another_key_is_another_text(part, files):
    files.put(KEY, features())
    other = [*KEY]
    other[part] = (*KEY[part], 7) if isinstance(KEY[part], tuple) else KEY[part] + "x"
    assert files.get(tuple(other)) is None


def test_damage_at_any_byte_is_noticed_and_the_file_dropped(files):
    files.put(KEY, features())
    whole = files.path(KEY).read_bytes()
    for place in random.Random(0).sample(range(len(whole)), 100):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        files.path(KEY).write_bytes(damaged)
        assert files.get(KEY) is None, place
        assert not files.path(KEY).exists()
    files.path(KEY).write_bytes(whole)
    assert same(files.get(KEY), features())


@pytest.mark.parametrize("length", [0, 10, 32, 40, -1])
def test_a_file_that_was_cut_short_is_dropped(length, files):
    files.put(KEY, features())
    files.path(KEY).write_bytes(files.path(KEY).read_bytes()[:length])
    assert files.get(KEY) is None and not files.path(KEY).exists()


def test_a_file_under_anothers_name_is_not_taken_for_it(files):
    files.put(KEY, features())
    os.replace(files.path(KEY), files.path("other"))
    assert files.get("other") is None


def test_the_least_recently_used_go_first(files):
    for number, key in enumerate("abc"):
        files.put(key, features(number))
        os.utime(files.path(key), (number, number))
    assert same(files.get("a"), features(0)), "used just now"
    files.limit = 3 * files.path("a").stat().st_size
    files.put("d", features(3))
    assert [key for key in "abcd" if files.get(key)] == ["a", "c", "d"]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    files = DiskCache(tmp_path / "file" / "kept")
    files.put(KEY, features())
    assert files.get(KEY) is None


def test_what_was_left_half_written_goes_in_time(files):
    files.put(KEY, features())
    old, young = files.folder / ".old.part", files.folder / ".young.part"
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    files.put("next", features())
    assert not old.exists() and young.exists()
