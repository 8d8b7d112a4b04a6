"""The blocks of `.gguf` files, dequantised in torch, give the numbers of the package `gguf` to the bit."""

import gguf
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gguf_pack import Kind
from llm4gen.models.encoders import linear
from llm4gen.models.files import gguf_blocks
from llm4gen.models.files.gguf_blocks import LAYOUTS
from tiny import relative_error

ROWS, BLOCKS = 48, 3  # blocks of a row
TINY, LARGEST = np.float16(6e-8), np.finfo(np.float16).max
SCALES = np.float16([0.0, -0.0, 1.0, -1.0, TINY, -TINY, 6.1e-5, LARGEST, -LARGEST, 0.1, -0.0123, 3e-7])


def random_rows(layout, scales=None):
    """Rows whose bytes are random, but for fp16 numbers that are not finite, or for all of them if scales are given."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (ROWS, BLOCKS * layout.size), dtype=np.uint8)
    halves = rows.reshape(-1, layout.size)[:, layout.floats].view(np.float16)
    if scales is None:
        halves[~np.isfinite(halves)] = 1.0
    else:
        halves[:] = random.choice(scales, halves.shape)
    return rows


def library(rows, kind):
    return torch.from_numpy(gguf.dequantize(rows, Kind[kind]))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_sizes_are_the_librarys(kind):
    assert (LAYOUTS[kind].numbers, LAYOUTS[kind].size) == gguf.GGML_QUANT_SIZES[Kind[kind]]


@pytest.mark.parametrize("chunk", [256, 1 << 19])
@pytest.mark.parametrize("scales", [None, SCALES], ids=["random", "extreme"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_numbers_equal_the_librarys_to_the_bit(kind, scales, chunk, monkeypatch):
    monkeypatch.setattr(gguf_blocks, "CPU_CHUNK_ELEMENTS", chunk)
    rows = random_rows(LAYOUTS[kind], scales)
    expected = library(rows, kind)
    found = LAYOUTS[kind].dequantise(torch.from_numpy(rows), torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_numbers_in_16_bits_are_the_librarys_rounded_once(kind, dtype):
    rows = random_rows(LAYOUTS[kind], SCALES)
    found = LAYOUTS[kind].dequantise(torch.from_numpy(rows), dtype)
    assert torch.equal(found, library(rows, kind).to(dtype))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_some_rows_are_those_rows_of_all(kind):
    rows = torch.from_numpy(random_rows(LAYOUTS[kind]))
    every, some = LAYOUTS[kind].dequantise(rows, torch.float32), torch.tensor([5, 0, 5, 47])
    assert torch.equal(LAYOUTS[kind].dequantise(rows[some], torch.float32), every[some])
    assert LAYOUTS[kind].dequantise(rows[:0], torch.float32).shape == (0, *every.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_by_pieces_of_the_matrix_is_that_with_all_of_it(dtype, monkeypatch):
    rows = random_rows(LAYOUTS["Q8_0"], np.float16([0.01, -0.02]))
    weight = library(rows, "Q8_0").to(dtype)
    monkeypatch.setattr(linear, "WHOLE_BYTES", weight.nbytes - 1)
    monkeypatch.setattr(linear, "PIECE_BYTES", 7 * weight[0].nbytes)  # which does not divide the rows
    x, bias = torch.randn(5, weight.shape[1]).to(dtype), torch.randn(len(weight)).to(dtype)
    found = linear.in_pieces(x, torch.from_numpy(rows), bias, LAYOUTS["Q8_0"].dequantise)
    assert (
        relative_error(found, torch.nn.functional.linear(x, weight, bias).float())
        < {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    )


class Operations(TorchDispatchMode):
    """Notes the operations that run."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names = [*getattr(self, "names", []), function.__name__.partition(".")[0]]
        return function(*args, **(kwargs or {}))


# What a GPU must be waited for: its numbers are read, or their count decides on a shape.
WAITING = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "equal",
    "unique",
    "_unique2",
    "masked_select",
    "is_nonzero",
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_nothing_waits_for_a_device(kind):
    rows = torch.from_numpy(random_rows(LAYOUTS[kind]))
    with Operations() as operations:
        LAYOUTS[kind].dequantise(rows, torch.float16)
    assert "mul_" in operations.names and not WAITING & set(operations.names)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_scale_that_is_not_finite_is_found_wherever_it_stands(kind, bad):
    layout = LAYOUTS[kind]
    for position in range(layout.floats.stop - layout.floats.start >> 1):
        rows = random_rows(layout)
        assert layout.fp16_numbers(torch.from_numpy(rows)).isfinite().all()
        rows.reshape(-1, layout.size)[-1, layout.floats].view(np.float16)[position] = bad
        assert not layout.fp16_numbers(torch.from_numpy(rows)).isfinite().all()
