"""Quantises matrices as `.gguf` files have them, for tests and the benchmarks.

The package `gguf` dequantises the K-quants, but cannot make them. The scales here span the smallest and the largest
number of a run; llama.cpp searches for better ones.
"""

from __future__ import annotations

import gguf
import numpy as np

Kind = gguf.GGMLQuantizationType


def packable(kind: Kind, columns: int) -> Kind:
    """The encoding, or Q8_0 if the columns do not divide into the encoding's blocks."""
    return kind if columns % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.Q8_0


def pack(matrix: np.ndarray, kind: Kind) -> np.ndarray:
    """Quantises an fp32 matrix [rows, columns] → [rows, bytes]."""
    if kind not in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
        return gguf.quantize(matrix, kind)
    blocks = matrix.reshape(-1, 256)
    packed = pack_6_bits(blocks) if kind is Kind.Q6_K else pack_4_or_5_bits(blocks, kind is Kind.Q5_K)
    return packed.reshape(len(matrix), -1)


def pack_4_or_5_bits(blocks: np.ndarray, five: bool) -> np.ndarray:
    """Q4_K or Q5_K: a block has eight runs of 32 numbers, q · scale - least; scale and least have 6 bits."""
    runs, levels = blocks.reshape(-1, 8, 32), 31 if five else 15
    least = np.maximum(0, -runs.min(axis=2))
    scale = (np.maximum(0, runs.max(axis=2)) + least) / levels
    d, dmin = (np.float16(part.max(axis=1, keepdims=True) / 63) for part in (scale, least))
    s, m = (np.uint8(np.clip(np.rint(a / b), 0, 63)) for a, b in ((scale, d), (least, dmin)))
    step, base = (np.float32(a * b)[..., None] for a, b in ((d, s), (dmin, m)))
    q = np.uint8(np.clip(np.rint((runs + base) / np.maximum(step, 1e-12)), 0, levels))
    sizes = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | m[:, 4:] << 4]
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    high = [np.bitwise_or.reduce([q[:, run] >> 4 << run for run in range(8)])] if five else []
    low = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.hstack([d.view(np.uint8), dmin.view(np.uint8), *sizes, *high, low])


def pack_6_bits(blocks: np.ndarray) -> np.ndarray:
    """Q6_K: a block has sixteen runs of 16 numbers, (q - 32) · scale; the scale has 8 bits."""
    runs = blocks.reshape(-1, 16, 16)
    scale = np.abs(runs).max(axis=2) / 31
    d = np.float16(scale.max(axis=1, keepdims=True) / 127)
    s = np.int8(np.minimum(np.rint(scale / d), 127))
    step = np.maximum(np.float32(d * s)[..., None], 1e-12)
    q = np.uint8(np.clip(np.rint(runs / step), -32, 31) + 32)
    four, two = (q & 15).reshape(-1, 2, 2, 64), (q >> 4).reshape(-1, 2, 4, 32)
    low = (four[:, :, 0] | four[:, :, 1] << 4).reshape(-1, 128)
    high = np.bitwise_or.reduce([two[:, :, run] << 2 * run for run in range(4)]).reshape(-1, 64)
    return np.hstack([low, high, s.view(np.uint8), d.view(np.uint8)])
