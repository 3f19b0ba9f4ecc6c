"""Operators (``torch.ops.convext.*``) called with sizes, dtypes and places that do not fit together.

Users reach these only through autograd, but nothing they pass may read or write out of bounds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import convext
from convext import ops
from tests import calls, numerics
from tests.test_errors import W, X, fails

_WINDOW = ([3, 3], [2, 2], [1] * 4, [1, 1], False)


@pytest.mark.parametrize("algorithm", calls.CONV_ALGORITHMS)
def test_convolution_operators_check_sizes(algorithm: str) -> None:
    options = ([1, 1], [0] * 4, [1, 1], 1, "zeros", False, algorithm)
    dy = torch.zeros(2, 4, 3, 5)
    for wrong in (dy[:1], dy[:, :3], dy[..., :4], dy[0], dy[None]):
        with fails(RuntimeError, "grad_output", list(wrong.shape), "expected [2, 4, 3, 5]"):
            ops.conv_backward_input(wrong, W, X.shape, *options)
        with fails(RuntimeError, "grad_output", list(wrong.shape), "expected [2, 4, 3, 5]"):
            ops.conv_backward_weight(wrong, X, W.shape, *options)
    for size in ([2, 6, 5], [-2, 6, 5, 7], [2, 6, -5, 7], [2, 5, 5, 7], [2, 6, 2**62, 7]):
        with fails(RuntimeError, "conv2d", str(size)):
            ops.conv_backward_input(dy, W, size, *options)
    for size in ([4, 6, 3, 0], [-4, 6, 3, 3], [4, 5, 3, 3], [4, 6, 3, 2**62]):
        with pytest.raises(RuntimeError, match=r"conv2d: .*(weight|kernel)"):
            ops.conv_backward_weight(dy, X, size, *options)


@pytest.mark.parametrize(("name", "at"), [("stride", 0), ("padding", 1), ("dilation", 2)])
@pytest.mark.parametrize("entries", [[], [1], [1, 1, 1]], ids=len)
def test_convolution_operators_count_entries(name: str, at: int, entries: list[int]) -> None:
    options: list[Any] = [[1, 1], [0] * 4, [1, 1], 1, "zeros", False, "auto"]
    options[at] = entries
    with fails(RuntimeError, "conv2d", name, f"{len(entries)} entries", f"expected {4 if name == 'padding' else 2}"):
        ops.conv_forward(X, W, None, *options)


@pytest.mark.parametrize("algorithm", calls.POOL_ALGORITHMS)
def test_pooling_operators_check_sizes(algorithm: str) -> None:
    calls.skip_if_refused(convext.explain("max_pool2d", X, 3, 2, 1), algorithm)
    y, places = ops.max_pool(X, *_WINDOW, True, algorithm)
    for wrong in (y[:1], y[:, :3], y[..., :2], y[0]):
        with fails(RuntimeError, "max_pool2d", "grad_output", list(wrong.shape), list(y.shape)):
            ops.max_pool_backward(wrong, places, X.shape, *_WINDOW, algorithm)
        with fails(RuntimeError, "avg_pool2d", "grad_output", list(wrong.shape), list(y.shape)):
            ops.avg_pool_backward(wrong, X.shape, *_WINDOW, True, None, algorithm)
    for wrong in (places[:1], places[..., :2]):
        with fails(RuntimeError, "max_pool2d", "places", list(wrong.shape), list(y.shape)):
            ops.max_pool_backward(y, wrong, X.shape, *_WINDOW, algorithm)
        with fails(RuntimeError, "max_pool2d", "places", list(wrong.shape), list(y.shape)):
            ops.max_pool_indices(wrong, X.shape, *_WINDOW)
    for wrong in (places.int(), places.long(), places.view(torch.int8)):
        with fails(RuntimeError, "max_pool2d", "places", "Byte", "9 places"):
            ops.max_pool_backward(y, wrong, X.shape, *_WINDOW, algorithm)
        with fails(RuntimeError, "max_pool2d", "places", "Byte", "9 places"):
            ops.max_pool_indices(wrong, X.shape, *_WINDOW)


@calls.variants(calls.POOL_ALGORITHMS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [3, 17])
def test_places_that_cannot_be_receive_nothing(kernel: int, channels_last: bool, algorithm: str, isa: str) -> None:
    """places are the caller's to pass: any number in them must leave memory alone."""
    window = ([kernel] * 2, [2, 2], [kernel // 2] * 4, [1, 1], False)
    x = torch.zeros(1, 3, 20, 21)
    calls.skip_if_refused(convext.explain("max_pool2d", x, kernel, 2, kernel // 2), algorithm)
    y, places = ops.max_pool(x, *window, True, algorithm)
    format = calls.memory_format(2, channels_last)
    dy = torch.ones_like(y).contiguous(memory_format=format)
    numbers = [9, 100, 255] if kernel == 3 else [289, 290, 10**6, 2**31 - 1, -1, -17, -289, -(2**31)]
    for number in numbers:
        at = torch.full_like(places, number).contiguous(memory_format=format)
        with numerics.poisoned(), numerics.guarded(dy, at) as (guarded_dy, guarded_at):
            gradient = ops.max_pool_backward(guarded_dy, guarded_at, x.shape, *window, algorithm)
            indices = ops.max_pool_indices(guarded_at, x.shape, *window)
        numerics.assert_equal(gradient, torch.zeros_like(x), f"places of {number}")
        assert indices.min() >= 0, number
        assert indices.max() < 20 * 21, number


def test_mixed_dtypes() -> None:
    options = ([1, 1], [0] * 4, [1, 1], 1, "zeros", False, "auto")
    dy = torch.zeros(2, 4, 3, 5).double()
    with fails(RuntimeError, "grad_output", "Double", "weight", "Float"):
        ops.conv_backward_input(dy, W, X.shape, *options)
    with fails(RuntimeError, "grad_output", "Double", "input", "Float"):
        ops.conv_backward_weight(dy, X, W.shape, *options)


@pytest.mark.parametrize("dtype", numerics.INTEGERS, ids=numerics.name_of)
def test_integers_have_no_gradients(dtype: torch.dtype) -> None:
    window = ([2, 2], [2, 2], [0] * 4, [1, 1], False)
    x = X.to(dtype)
    output, places = ops.max_pool(x, *window, True, "auto")
    with fails(NotImplementedError, "max_pool_backward", "floating-point"):
        ops.max_pool_backward(output, places, x.shape, *window, "auto")
    with fails(NotImplementedError, "avg_pool_backward", "floating-point"):
        ops.avg_pool_backward(output, x.shape, *window, True, None, "auto")
