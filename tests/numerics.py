"""Numbers for tests: exact integers, derived error bounds, poison, sentinels, bits.

Two kinds of comparison. On small integers every sum is exact in the accumulate type, so results must have the same
bits whatever the order of summation; a 16-bit result is then the exact sum, rounded once. On floats the difference is
held to the textbook bound of a sum of K products in any order (Higham, Accuracy and Stability, section 3.1):

    |error| <= gamma(K) sum |x| |w|,   gamma(K) = K u / (1 - K u),   u = half the machine epsilon

with K counted per element, u of the accumulate type, and half an ulp of the result more where it is stored in 16 bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from convext import _C

FLOATS: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
if os.environ.get("CONVEXT_WITHOUT_FLOAT16") == "1":  # what the emulated kernels may be built without: setup.py
    FLOATS = tuple(dtype for dtype in FLOATS if dtype != torch.float16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Maker = Callable[..., Tensor]


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of ``dtype`` are formed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Makers --------------------------------------------------------------------------------------------------------------


def integers(dtype: torch.dtype = torch.float32, largest: int = 3, seed: int = 0) -> Maker:
    """``make(*shape)`` -> integers in [-largest, largest] (from 0 for uint8), each call new ones.

    A sum of n products is exact in float32 up to n largest^2 = 2^24.
    """
    generator = torch.Generator().manual_seed(seed)
    smallest = 0 if dtype == torch.uint8 else -largest

    def make(*shape: int) -> Tensor:
        return torch.randint(smallest, largest + 1, shape, generator=generator).to(dtype)

    return make


def normals(dtype: torch.dtype = torch.float32, seed: int = 0) -> Maker:
    """``make(*shape)`` -> standard normal numbers, each call new ones."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return make


# Comparisons ---------------------------------------------------------------------------------------------------------


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers: tells zeros of different sign and different NaN apart."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _report(actual: Tensor, expected: Tensor, wrong: Tensor, what: str) -> str:
    places = wrong.nonzero()
    first = tuple(places[0].tolist())
    return (
        f"{what}: {len(places)} of {wrong.numel()} elements differ, the first at {first}: "
        f"got {actual[first].item()!r}, expected {expected[first].item()!r}"
    )


def _check_alike(actual: Tensor, expected: Tensor, what: str) -> None:
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    """Same shape, dtype and bits."""
    _check_alike(actual, expected, what)
    wrong = bits(actual) != bits(expected)
    assert not wrong.any(), _report(actual, expected, wrong, what)


def assert_equal(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    """Same shape, dtype and values: NaN equals NaN, zeros of either sign are equal."""
    _check_alike(actual, expected, what)
    wrong = (actual != expected) & ~(actual.isnan() & expected.isnan())
    assert not wrong.any(), _report(actual, expected, wrong, what)


def gamma(terms: Tensor, dtype: torch.dtype) -> Tensor:
    """Higham's gamma of a sum of so many terms in ``dtype``, as float64."""
    unit = torch.finfo(dtype).eps / 2
    return terms.double() * unit / (1 - terms.double() * unit)


def error_bound(expected: Tensor, magnitude: Tensor, terms: Tensor, dtype: torch.dtype) -> Tensor:
    """How far a result of ``dtype`` may lie from ``expected``, per element.

    expected: the value, computed in float64; magnitude: the same with every operand's absolute value; terms: how many
    products each element sums. The float64 computation of ``expected`` is granted its own rounding.
    """
    bound = magnitude.double() * (gamma(terms, accumulate_dtype(dtype)) + gamma(terms, torch.float64))
    if dtype != accumulate_dtype(dtype):
        info = torch.finfo(dtype)
        bound = bound + info.eps / 2 * (expected.abs() + bound) + info.tiny * info.eps / 2
    return bound


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor, what: str = "result") -> None:
    """|actual - expected| <= bound, element by element; a NaN fails."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = (actual.double() - expected.double()).abs()
    wrong = ~(error <= bound)
    assert not wrong.any(), _report(actual, expected, wrong, what) + f", bound {bound[wrong][0].item():.3g}"


# Surroundings --------------------------------------------------------------------------------------------------------


@contextmanager
def poisoned() -> Iterator[None]:
    """Within: the operators' outputs arrive full of NaN (integers: 99 or 0xA5), workspaces full of 0xA5."""
    _C.set_poison(True)
    try:
        yield
    finally:
        _C.set_poison(False)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Within: kernels of that instruction set run."""
    before = _C.active_isa()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)


# avx512_bf16 is avx512 but for im2col's products of bfloat16.
PAIRING = "avx512_bf16"
ISAS = [name for name in _C.available_isas() if name != PAIRING]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within: torch runs ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_MARGIN = 67  # elements before and after; odd, so that the data are not aligned to vectors


def _sentinel(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


def _in_buffer(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor of the same values and strides that lies in the middle of a buffer of sentinels, and the buffer."""
    dense = tensor.clone(memory_format=torch.preserve_format)
    size = (dense.numel() + 2 * _MARGIN,)
    buffer = torch.full(size, _sentinel(tensor.dtype), dtype=tensor.dtype, device=tensor.device)
    view = buffer.as_strided(dense.shape, dense.stride(), _MARGIN)
    view.copy_(dense)
    return view, buffer


@contextmanager
def guarded(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """Copies of the tensors in memory surrounded by sentinels: NaN, for integers the largest number.

    A read out of bounds shows in the result. On leaving, every buffer must hold the bits it held: neither the inputs
    nor their surroundings may be written to.
    """
    views: list[Tensor | None] = []
    held: list[tuple[Tensor, Tensor]] = []
    for tensor in tensors:
        if tensor is None:
            views.append(None)
            continue
        view, buffer = _in_buffer(tensor)
        views.append(view)
        held.append((buffer, buffer.clone()))
    yield tuple(views)
    for i, (buffer, before) in enumerate(held):
        assert torch.equal(bits(buffer), bits(before)), f"tensor {i} or its surroundings were written to"
