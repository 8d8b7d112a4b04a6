"""The block layouts of `.gguf` files: bytes → numbers, in torch, on the device where the bytes lie.

A row is a sequence of blocks: of 32 numbers, or of 256 in the K-quants. In all of them a number is `integer · scale -
least`, where scale and least belong to a run of numbers in the block. Products of an integer and a scale need at most
24 bits, so fp32 holds them exactly, and the order of the operations does not change a bit of the result.

Source: the descriptions of the blocks in ggml (ggml-common.h), as the package `gguf` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers dequantised at a time: on a CPU they fit into its cache; on a GPU a large piece keeps it busy, and the
# intermediate results of one stay small beside a model.
CPU_CHUNK_ELEMENTS = 1 << 19
GPU_CHUNK_ELEMENTS = 1 << 24


class Unpacked(NamedTuple):
    """n blocks whose numbers are `integers · scale - least`.

    integers: [n, runs, numbers of a run], uint8 or int8.
    scale:    fp32 [n, runs, 1]. So is `least`; None: it is 0.
    """

    integers: Tensor
    scale: Tensor
    least: Tensor | None


@dataclass(frozen=True)
class Layout:
    """A kind of block.

    numbers: how many a block holds.
    size:    bytes of a block.
    floats:  the bytes that hold fp16 numbers. If these are finite, all numbers of the block are.
    unpack:  blocks [n, size], uint8 → their parts.
    """

    numbers: int
    size: int
    floats: slice
    unpack: Callable[[Tensor], Unpacked]

    def dequantise(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """Bytes [rows, bytes of a row] → numbers [rows, columns] on the same device. Waits for no device."""
        blocks = data.reshape(-1, self.size)
        columns = data.shape[1] // self.size * self.numbers
        out = torch.empty(len(data), columns, dtype=dtype, device=data.device)
        in_blocks = out.view(-1, self.numbers)
        step = (CPU_CHUNK_ELEMENTS if data.is_cpu else GPU_CHUNK_ELEMENTS) // self.numbers
        for start in range(0, len(blocks), step):
            integers, scale, least = self.unpack(blocks[start : start + step])
            target = in_blocks[start : start + step].view(integers.shape)
            # Where the result is fp32, it needs no copy of its own to be computed in.
            numbers = target if dtype is torch.float32 else torch.empty_like(target, dtype=torch.float32)
            numbers.copy_(integers).mul_(scale)
            if least is not None:
                numbers.sub_(least)
            if numbers is not target:
                target.copy_(numbers)
        return out

    def fp16_numbers(self, data: Tensor) -> Tensor:
        """The fp16 numbers in the blocks of some rows, [n, 1 or 2] in fp32."""
        return halves(data.reshape(-1, self.size)[:, self.floats])


def halves(data: Tensor) -> Tensor:
    """Bytes of fp16 numbers [n, 2 k] → fp32 [n, k]."""
    return data.view(torch.float16).float()


def nibbles(data: Tensor, width: int) -> Tensor:
    """Bytes [n, k · width] → [n, 2 k, width]: of each `width` bytes the lower four bits, then the upper four."""
    data = data.unflatten(1, (-1, width))
    return torch.stack([data & 15, data >> 4], dim=2).flatten(1, 2)


def bit_planes(data: Tensor, bits: int, dim: int) -> Tensor:
    """Splits bytes into groups of `bits` bits, from the lowest, along a new dimension."""
    mask = (1 << bits) - 1
    return torch.stack([data >> shift & mask for shift in range(0, 8, bits)], dim=dim)


def with_high_bits(low: Tensor, high: Tensor) -> Tensor:
    """Four lower bits and the bits above them → the integers."""
    return low | (high << 4)


def unpack_q8_0(block: Tensor) -> Unpacked:
    """scale (fp16), 32 signed bytes."""
    return Unpacked(block[:, None, 2:].view(torch.int8), halves(block[:, :2])[..., None], None)


def unpack_q4_0(block: Tensor) -> Unpacked:
    """scale (fp16), 32 integers of 4 bits, of which 8 is zero."""
    scale = halves(block[:, :2])[..., None]
    return Unpacked(nibbles(block[:, 2:], 16), scale, 8 * scale)


def unpack_q4_1(block: Tensor) -> Unpacked:
    """scale and smallest number (fp16), 32 integers of 4 bits."""
    scale, smallest = halves(block[:, :4])[..., None, None].unbind(1)
    return Unpacked(nibbles(block[:, 4:], 16), scale, -smallest)


def unpack_q5_0(block: Tensor) -> Unpacked:
    """scale (fp16), the fifth bits of 32 integers, their lower four bits; 16 is zero."""
    scale = halves(block[:, :2])[..., None]
    fifth = bit_planes(block[:, 2:6], 1, dim=2).view(-1, 2, 16)
    return Unpacked(with_high_bits(nibbles(block[:, 6:], 16), fifth), scale, 16 * scale)


def unpack_q5_1(block: Tensor) -> Unpacked:
    """scale and smallest number (fp16), the fifth bits of 32 integers, their lower four bits."""
    scale, smallest = halves(block[:, :4])[..., None, None].unbind(1)
    fifth = bit_planes(block[:, 4:8], 1, dim=2).view(-1, 2, 16)
    return Unpacked(with_high_bits(nibbles(block[:, 8:], 16), fifth), scale, -smallest)


def unpack_q4_k(block: Tensor) -> Unpacked:
    """The head of eight runs (`k_scales`), 256 integers of 4 bits."""
    return Unpacked(nibbles(block[:, 16:], 32), *k_scales(block))


def unpack_q5_k(block: Tensor) -> Unpacked:
    """The head of eight runs (`k_scales`), the fifth bits (bit r of byte i is for number i of run r), the others."""
    fifth = bit_planes(block[:, 16:48], 1, dim=1)
    return Unpacked(with_high_bits(nibbles(block[:, 48:], 32), fifth), *k_scales(block))


def unpack_q6_k(block: Tensor) -> Unpacked:
    """Lower four and upper two bits of 256 integers (32 is zero), 16 scales of 8 bits, the scale of these (fp16)."""
    upper = bit_planes(block[:, 128:192].unflatten(1, (2, 32)), 2, dim=2)
    integers = with_high_bits(nibbles(block[:, :128], 64).flatten(1), upper.flatten(1))
    scale = (halves(block[:, 208:]) * block[:, 192:208].view(torch.int8))[..., None]
    return Unpacked(integers.view(-1, 16, 16), scale, 32 * scale)


def k_scales(block: Tensor) -> tuple[Tensor, Tensor]:
    """The first 16 bytes of Q4_K and Q5_K → scale and least of eight runs, [n, 8, 1] each.

    Two fp16 numbers multiply eight scales and eight leasts of 6 bits. These stand in three groups of four bytes: the
    first four scales, the first four leasts, and the lower four bits of the other scales and leasts. The upper two
    bits of those are the upper two bits of the first and second group.
    """
    scales, leasts, others = block[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    integers = torch.stack(
        [
            torch.cat([scales & 63, with_high_bits(others & 15, scales >> 6)], dim=1),
            torch.cat([leasts & 63, with_high_bits(others >> 4, leasts >> 6)], dim=1),
        ],
        dim=1,
    )
    scale, least = (halves(block[:, :4])[..., None] * integers)[..., None].unbind(1)
    return scale, least


LAYOUTS = {
    "Q8_0": Layout(32, 34, slice(0, 2), unpack_q8_0),
    "Q4_0": Layout(32, 18, slice(0, 2), unpack_q4_0),
    "Q4_1": Layout(32, 20, slice(0, 4), unpack_q4_1),
    "Q5_0": Layout(32, 22, slice(0, 2), unpack_q5_0),
    "Q5_1": Layout(32, 24, slice(0, 4), unpack_q5_1),
    "Q4_K": Layout(256, 144, slice(0, 4), unpack_q4_k),
    "Q5_K": Layout(256, 176, slice(0, 4), unpack_q5_k),
    "Q6_K": Layout(256, 210, slice(208, 210), unpack_q6_k),
}
