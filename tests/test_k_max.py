"""k-max pooling: held to a stable sort, bit for bit, at the edges of what its kernels are made of.

On the CPU those are lanes, pieces of a line whose maxima bound the k-th greatest, groups of vectors that are passed
over, steps of halving, blocks of channels and the room of their lists (csrc/cpu/k_max.cpp, whose constants are here).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import convext
import convext.functional as C
from tests import numerics

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LANES = (2, 4, 8, 16)  # of numbers of 64 and 32 bits, in vectors of 16 to 64 bytes
PIECE, RARE = 3, 20  # kLinePiece, kLineRare
TOGETHER, GATHERED = 64, 16  # kTogether, kGathered


def around(n: int) -> tuple[int, ...]:
    return n - 1, n, n + 1


def pieced(k: int, lanes: int) -> int:
    """The shortest line that is cut into pieces."""
    vectors = math.ceil((k + k // 2) / lanes)
    vectors = 4 if vectors == 3 else 8 if 4 < vectors < 8 else vectors
    return vectors * lanes * PIECE


# Lines: numbers and how many of them are kept.
FEW = [(n, k) for lanes in LANES for n in around(lanes) for k in {1, n // 2, n}]
PIECED = [(n, k) for lanes in LANES for k in (1, 2, 3, 5, 6, 11, 12, 22, 43, 44) for n in around(pieced(k, lanes))]
PASSED_OVER = [(n, k) for lanes in LANES for k in (1, 3) for n in around(RARE * k * lanes)]
LONG = [(1000, k) for k in (1, 7, 64, 65, 100, 333, 500, 999, 1000)] + [(4099, 4), (4100, 45)]
LINES = sorted({(n, k) for n, k in FEW + PIECED + PASSED_OVER + LONG if 0 < k <= n})
# channels_last images: channels, places and how many of them are kept. Lists are made where 2 k pieces have 3 places.
BESIDE = [
    *((c, n, k) for c in (*around(TOGETHER), 2 * TOGETHER) for n, k in ((60, 3), (200, 20))),
    *((c, 50, 2) for lanes in LANES for c in around(lanes)),
    *((GATHERED + 1, n, k) for k in (1, 4, 9) for n in (*around(2 * k * PIECE), *around(4 * k * PIECE), 700)),
    *((c, 40, 25) for c in around(GATHERED)),
]


def stable(lines: Tensor, k: int) -> Tensor:
    """The places of the k greatest along the last dimension: NaN first, then by value, then by place."""
    keys = lines.double() if lines.is_floating_point() else lines
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices  # torch sorts NaN as the greatest
    return order[..., :k].sort(-1).values


def picked(lines: Tensor, places: Tensor) -> Tensor:
    """lines at places along the last dimension, bit for bit: torch's gather rewrites a NaN of 16 bits."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[lines.element_size()]
    return lines.view(bits).gather(-1, places).view(lines.dtype)


def peculiar(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    x = numerics.integers(dtype, largest=4)(*shape)
    if not dtype.is_floating_point:
        return x
    for number, special in ((4, math.nan), (-4, -math.inf), (3, math.inf), (1, -0.0)):
        x = torch.where(x == number, torch.tensor(special, dtype=dtype), x)
    return x


def distinct(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """All bits of the numbers, as far as they are finite, in any order."""
    if not dtype.is_floating_point:
        ends = torch.iinfo(dtype)
        return torch.randint(ends.min, ends.max, shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    exponents = numerics.integers(torch.float64, largest=8, seed=1)(*shape)
    return (numerics.normals(torch.float64)(*shape) * exponents.exp2()).to(dtype)


def ascending(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return distinct(dtype, shape).sort(-1).values


def descending(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return distinct(dtype, shape).sort(-1, descending=True).values


def equal(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min, dtype=dtype)


def signed_zeros(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return (
        numerics.integers(dtype, largest=1)(*shape).clamp_max(0) * 0 if dtype.is_floating_point else equal(dtype, shape)
    )


def extremes(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The least, the greatest and, of floats, more NaN than are kept."""
    ends = (-math.inf, math.inf, math.nan)
    if not dtype.is_floating_point:
        ends = torch.iinfo(dtype).min, torch.iinfo(dtype).max, torch.iinfo(dtype).max - 1
    return torch.tensor(ends, dtype=dtype)[numerics.integers(torch.int64, largest=1)(*shape) + 1]


def in_one_piece(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The greatest numbers are all in one lane, and of channels in one piece: bounds let most of them through."""
    x = distinct(dtype, shape) // 2 if not dtype.is_floating_point else distinct(dtype, shape).abs() / 2
    least = -1 if dtype.is_floating_point else torch.iinfo(dtype).min
    return torch.where(torch.arange(shape[-1]) % 16 == 5, x, torch.tensor(least, dtype=dtype))


KINDS = (peculiar, distinct, ascending, descending, equal, signed_zeros, extremes, in_one_piece)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_type = pytest.mark.parametrize("of", [*numerics.FLOATS, *INTEGERS], ids=numerics.name_of)


def check(x: Tensor, k: int) -> None:
    """x: (n, c, *places), read where it lies."""
    with numerics.guarded(x) as (fenced,), numerics.poisoned():
        values, indices = C.k_max_pool(fenced, k, True)
    lines = x.flatten(2).contiguous()
    expected = stable(lines, k)
    numerics.assert_same_bits(indices, expected)
    numerics.assert_same_bits(values, picked(lines, expected))
    assert values.is_contiguous()


@each_type
@each_kind
def test_lines(kind: Any, of: torch.dtype, isa: str) -> None:
    for n, k in LINES:
        check(kind(of, (1, 2, n)), k)


@each_type
@each_kind
def test_channels_side_by_side(kind: Any, of: torch.dtype, isa: str) -> None:
    for channels, places, k in BESIDE:
        x = kind(of, (2, channels, places)).unsqueeze(-1)
        check(x.contiguous(memory_format=torch.channels_last), k)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_results_do_not_depend_on_threads_or_the_batch(channels_last: bool) -> None:
    x = peculiar(torch.float32, (3, 70, 31, 7))
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    for k in (1, 6, 100):
        with numerics.threads(1):
            alone = [C.k_max_pool(image[None], k, True) for image in x]
        for count in (1, 2, 3):
            with numerics.threads(count):
                values, indices = C.k_max_pool(x, k, True)
            numerics.assert_same_bits(values, torch.cat([a[0] for a in alone]))
            numerics.assert_same_bits(indices, torch.cat([a[1] for a in alone]))


@given(
    st.integers(1, 90).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(0, 2), st.integers(0, 9)
)
def test_k_max_along_any_dimension(sizes: tuple[int, int], dim: int, seed: int) -> None:
    n, k = sizes
    shape = [2, 3, 4]
    shape[dim] = n
    x = numerics.integers(seed=seed)(*shape)
    values, indices = C.k_max_pool1d(x, k, dim, True)
    expected = stable(x.movedim(dim, -1), k).movedim(-1, dim)
    assert torch.equal(indices, expected)
    assert torch.equal(values, x.gather(dim, expected))
    assert torch.equal(convext.KMaxPool1d(k, dim - 3)(x), values)


def test_k_max_errors() -> None:
    x = torch.ones(2, 3, 5)
    for k, error, text in ((6, ValueError, "between 1 and the 5"), (0, ValueError, "got k=0"), (2.0, TypeError, "int")):
        with pytest.raises(error, match=text):
            C.k_max_pool1d(x, k)
        with pytest.raises(error, match=text):
            C.k_max_pool(x, k)
    with pytest.raises(IndexError, match="dim=3"):
        C.k_max_pool1d(x, 1, 3)
    with pytest.raises(ValueError, match="k must be at least 1"):
        convext.KMaxPool1d(0)
    with pytest.raises(RuntimeError, match="1 to 3 spatial dimensions"):
        C.k_max_pool(x[0], 1)
    assert C.k_max_pool1d(x[:0], 2).shape == (0, 3, 2)
