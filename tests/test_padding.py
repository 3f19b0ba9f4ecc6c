"""Every form of padding comes to the same (before, after) places, in every function and layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convext
import convext.functional as C
from convext import reference
from convext.arguments import expand
from convext.padding import PADDING_STRINGS, is_per_side, needs_extension, resolve, same_padding
from tests import numerics, peer


def resolved(padding: Any, sizes: tuple[int, ...] = (7, 8), stride: tuple[int, ...] = (1, 1)) -> list[int]:
    return resolve("op", padding, sizes, (3, 4)[: len(sizes)], stride, (1, 1)[: len(sizes)])


@pytest.mark.parametrize(
    ("padding", "flat"),
    [
        (0, [0, 0, 0, 0]),
        (2, [2, 2, 2, 2]),
        ((1,), [1, 1, 1, 1]),
        ((1, 2), [1, 1, 2, 2]),
        ([1, 2], [1, 1, 2, 2]),
        (((1, 2), (3, 4)), [1, 2, 3, 4]),
        ([[1, 2], [3, 4]], [1, 2, 3, 4]),
        ("valid", [0, 0, 0, 0]),
        ("same", [1, 1, 1, 2]),
        ("same_lower", [1, 1, 2, 1]),
    ],
    ids=str,
)
def test_forms(padding: Any, flat: list[int]) -> None:
    assert resolved(padding) == flat


@pytest.mark.parametrize(
    ("padding", "error", "text"),
    [
        ("full", RuntimeError, "Invalid padding string"),
        ("SAME", RuntimeError, "Invalid padding string"),
        ((1, 2, 3), RuntimeError, "must be a single int or 2 ints"),
        (((1, 2),), RuntimeError, r"one \(before, after\) pair per dimension"),
        (((1, 2), (3, 4), (5, 6)), RuntimeError, r"one \(before, after\) pair"),
        (((1, 2), (3,)), RuntimeError, r"one \(before, after\) pair"),
        (((1, 2), 3), RuntimeError, r"one \(before, after\) pair"),
        (((1, 2), (3, 4.0)), TypeError, "made of ints"),
        (1.0, TypeError, "must be an int"),
        (None, TypeError, "must be an int"),
        (True, TypeError, "must be an int"),
        ((1, 2.0), TypeError, "must be an int"),
    ],
    ids=str,
)
def test_what_is_no_padding(padding: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        resolved(padding)


def test_same_padding_needs_a_stride() -> None:
    with pytest.raises(RuntimeError, match="non-positive stride"):
        resolved("same", stride=(1, 0))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.integers(1, 4), st.booleans())
def test_same_padding_makes_ceil_of_input_over_stride(
    size: int, kernel: int, stride: int, dilation: int, lower: bool
) -> None:
    before, after = same_padding(size, kernel, stride, dilation, lower)
    reach = dilation * (kernel - 1) + 1
    assert min(before, after) >= 0
    assert (size + before + after - reach) // stride + 1 == -(-size // stride)
    assert 0 <= (before - after if lower else after - before) <= 1
    assert before + after == 0 or (size + before + after - 1 - reach) // stride + 1 < -(-size // stride)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_expand(spatial: int) -> None:
    assert expand("op", "stride", 2, spatial) == [2] * spatial
    assert expand("op", "stride", (3,), spatial) == [3] * spatial
    assert expand("op", "stride", list(range(spatial)), spatial) == list(range(spatial))
    with pytest.raises(RuntimeError, match="stride must be a single int"):
        expand("op", "stride", (1,) * (spatial + 1), spatial)
    with pytest.raises(TypeError, match="op: stride must be an int"):
        expand("op", "stride", "1", spatial)


def test_what_torch_would_refuse() -> None:
    assert needs_extension("same", 2)
    assert needs_extension("same", (1, 2))
    assert needs_extension("same_lower", 1)
    assert needs_extension(((1, 1), (1, 1)), 1)
    assert not any(needs_extension(p, s) for p, s in (("same", 1), ("same", (1, 1)), ("valid", 2), (1, 2), ((1, 2), 2)))
    assert is_per_side(((0, 1),))
    assert not any(is_per_side(p) for p in (1, (1, 2), "same", ()))


# Through the functions -----------------------------------------------------------------------------------------------

PADDINGS: dict[str, tuple[Any, list[int]]] = {
    "per_side": (((0, 2), (1, 0)), [0, 2, 1, 0]),
    "same": ("same", [0, 1, 0, 1]),
    "same_lower": ("same_lower", [1, 0, 1, 0]),
    "valid": ("valid", [0, 0, 0, 0]),
}
each_padding = pytest.mark.parametrize("form", PADDINGS)


@each_padding
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular", "symmetric"])
def test_convolution_is_that_of_the_padded_input(form: str, mode: str) -> None:
    """Values and gradients: input 7x6, kernel 2x4, stride 2x3 (same: 4x2)."""
    padding, flat = PADDINGS[form]
    make = numerics.integers(torch.float64)
    operands = [make(2, 2, 7, 6), make(3, 2, 2, 4), make(3)]

    def ours(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return C.conv2d(x, w, b, (2, 3), padding, padding_mode=mode)

    def padded(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(reference.pad(x, flat, mode), w, b, (2, 3))

    grad_output = make(*padded(*operands).shape)
    for actual, expected in zip(
        peer.results(ours, operands, grad_output), peer.results(padded, operands, grad_output), strict=True
    ):
        numerics.assert_equal(actual, expected)
    if form.startswith("same"):
        assert grad_output.shape[2:] == (4, 2)


@each_padding
def test_max_pooling_ignores_the_padding(form: str) -> None:
    padding, (top, bottom, left, right) = PADDINGS[form]
    x = numerics.integers()(2, 2, 7, 6) - 9  # below zero: padding with zeros would show
    padded = torch.nn.functional.pad(x, (left, right, top, bottom), value=-float("inf"))
    kernel = (3, 4) if form == "per_side" else (2, 4)
    actual = C.max_pool2d(x, kernel, (2, 3), padding)
    numerics.assert_equal(actual, torch.nn.functional.max_pool2d(padded, kernel, (2, 3)))


@each_padding
@pytest.mark.parametrize("include", [True, False], ids=["padding_counts", "inside_only"])
def test_average_pooling_counts_the_padding_or_not(form: str, include: bool) -> None:
    padding, (top, bottom, left, right) = PADDINGS[form]
    x = numerics.integers(torch.float64)(2, 2, 7, 6)
    kernel = (4, 4) if form == "per_side" else (2, 4)
    wide = (left, right, top, bottom)
    sums = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, wide), kernel, (2, 3), divisor_override=1)
    inside = torch.nn.functional.pad(torch.ones_like(x), wide, value=float(include))
    counts = torch.nn.functional.avg_pool2d(inside, kernel, (2, 3), divisor_override=1)
    expected = sums / counts
    bound = expected.abs() * numerics.gamma(torch.tensor(3), torch.float64)  # 1 / n, the product; and the quotient here
    numerics.assert_within(C.avg_pool2d(x, kernel, (2, 3), padding, count_include_pad=include), expected, bound)


@pytest.mark.parametrize("padding", ["same", "same_lower"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_same_undoes_the_size(padding: str, stride: int) -> None:
    """n places become n * stride, and the convolution of the same padding leads back; each is the other's adjoint."""
    make = numerics.integers(torch.float64)
    y, w = make(1, 3, 4, 5), make(3, 2, 3, 4)
    x = C.conv_transpose2d(y, w, stride=stride, padding=padding)
    assert x.shape == (1, 2, 4 * stride, 5 * stride)
    other = make(*x.shape)
    back = C.conv2d(other, w, stride=stride, padding=padding)
    assert back.shape == y.shape
    assert (x * other).sum() == (y * back).sum()


def test_transposed_per_side_padding_cuts_per_side() -> None:
    make = numerics.integers()
    x, w = make(1, 2, 5, 4), make(2, 3, 3, 3)
    whole = torch.nn.functional.conv_transpose2d(x, w, stride=2)
    cut = C.conv_transpose2d(x, w, stride=2, padding=((1, 2), (0, 1)))
    numerics.assert_equal(cut, whole[:, :, 1:-2, 0:-1])


# Through the layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", peer.CONVOLUTIONS + peer.TRANSPOSED + peer.MAX_POOLS + peer.AVERAGE_POOLS)
@pytest.mark.parametrize("padding", [*PADDING_STRINGS, "pairs"])
def test_layers_take_every_form(name: str, padding: str) -> None:
    """And give what the function gives."""
    spatial = peer.spatial_of(name)
    form: Any = ((1, 0),) * spatial if padding == "pairs" else padding
    make = numerics.integers()
    x = make(1, 2, *peer.small_size(spatial))
    if "Conv" in name:
        layer = getattr(convext, name)(2, 2, 3, stride=2, padding=form)
        function = getattr(C, f"conv_transpose{spatial}d" if "Transpose" in name else f"conv{spatial}d")
        numerics.assert_same_bits(layer(x), function(x, layer.weight, layer.bias, stride=2, padding=form))
    else:
        layer = getattr(convext, name)(3, 2, form)
        function = getattr(C, f"{'max' if 'Max' in name else 'avg'}_pool{spatial}d")
        numerics.assert_same_bits(layer(x), function(x, 3, 2, form))
    assert f"padding={form}" in repr(layer) or f"padding={form!r}" in repr(layer)
