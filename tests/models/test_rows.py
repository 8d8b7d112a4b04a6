"""Which rows are computed: positions that T5 cannot tell apart share one."""

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from llm4gen.models.encoders.rows import all_rows, distinct_rows, relative_position_bucket


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (16, 64), (64, 256)])
def test_buckets_are_transformers_buckets(buckets, reach):
    distance = torch.arange(-700, 701)
    theirs = T5Attention._relative_position_bucket(distance, True, buckets, reach)
    assert torch.equal(relative_position_bucket(distance, buckets, reach), theirs)


@pytest.mark.parametrize(("real", "padded"), [(2, 22), (30, 91), (80, 91), (256, 0)])
def test_how_many_padded_rows_differ(real, padded):
    rows = distinct_rows(real, 256)
    assert len(rows.positions) == real + padded


def test_shared_rows_have_the_same_buckets_and_tokens_keep_their_own():
    for real in (1, 7, 128, 250, 256):
        rows = distinct_rows(real, 256)
        towards = relative_position_bucket(torch.arange(real) - torch.arange(256)[:, None], 32, 128)
        assert torch.equal(towards, towards[rows.positions][rows.row_of])
        assert torch.equal(rows.row_of[:real], torch.arange(real))
        assert torch.equal(rows.positions[:real], torch.arange(real))


def test_spread_of_all_rows_changes_nothing():
    states = torch.randn(2, 16, 4)
    assert torch.equal(all_rows(5, 16).expand(states), states)
