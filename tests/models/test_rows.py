"""Plans of rows: padded positions that T5 cannot tell apart share one computed row."""

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from llm4gen.models.encoders.rows import all_rows, distinct_rows, relative_position_bucket


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (64, 256)])
def test_buckets_equal_transformers(buckets, max_distance):
    distance = torch.arange(-700, 701)
    expected = T5Attention._relative_position_bucket(distance, True, buckets, max_distance)
    assert torch.equal(relative_position_bucket(distance, buckets, max_distance), expected)


@pytest.mark.parametrize(("real", "padded"), [(2, 22), (30, 91), (80, 91), (256, 0)])
def test_every_distinct_padded_row_is_computed_once(real, padded):
    rows = distinct_rows(real, 256)
    assert len(rows.positions) == real + padded


def test_positions_share_a_row_only_with_equal_buckets_and_tokens_share_none():
    for real in (1, 7, 128, 250, 256):
        rows = distinct_rows(real, 256)
        buckets = relative_position_bucket(torch.arange(real) - torch.arange(256)[:, None], 32, 128)
        assert torch.equal(buckets, buckets[rows.positions][rows.row_of])
        assert torch.equal(rows.row_of[:real], torch.arange(real))
        assert torch.equal(rows.positions[:real], torch.arange(real))


def test_expanding_all_rows_changes_nothing():
    states = torch.randn(2, 16, 4)
    assert torch.equal(all_rows(5, 16).expand(states), states)
