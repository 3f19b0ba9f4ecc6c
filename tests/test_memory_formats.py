"""Memory formats and views: values do not depend on strides, and the strides of results are torch's.

Deliberate differences, asserted for what they are: avg_pool3d keeps channels_last_3d (torch falls back to contiguous);
1-D pooling gives contiguous results of a view whose channels run last (torch has no such format in one dimension
either, but takes it for a 2-D one).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import convext.functional
from convext import _C
from tests import calls, numerics, peer


def _sliced(t: Tensor, dim: int) -> Tensor:
    """t's values as every second place along ``dim`` of a larger tensor full of NaN."""
    shape = list(t.shape)
    shape[dim] *= 2
    wide = t.new_full(shape, float("nan"))
    view = wide.narrow(dim, 1, shape[dim] - 1)[(slice(None),) * (dim % t.dim()) + (slice(None, None, 2),)]
    view.copy_(t)
    return view


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=calls.memory_format(t.dim() - 2, True)),
    "transposed": lambda t: t.transpose(1, -1).contiguous().transpose(1, -1),
    "sliced_width": lambda t: _sliced(t, -1),
    "sliced_channels": lambda t: _sliced(t, 1),
    "sliced_channels_last": lambda t: _sliced(t.movedim(1, -1).contiguous(), -1).movedim(-1, 1),
    "sliced_batch": lambda t: _sliced(t, 0),
    "expanded_batch": lambda t: t[:1].expand_as(t),
    "offset": lambda t: torch.cat([t.new_full((3,), float("nan")), t.flatten()])[3:].view(t.shape),
}

# (batch, channels, *places): a common one, and those for which the formats are ambiguous.
SHAPES = (
    (2, 3, 8),
    (2, 1, 8),
    (2, 3, 1),
    (2, 3, 5, 6),
    (2, 1, 5, 6),
    (2, 3, 1, 1),
    (1, 3, 1, 6),
    (1, 1, 1, 1),
    (2, 3, 4, 5, 6),
    (2, 1, 4, 5, 6),
    (2, 3, 1, 1, 1),
)

views = pytest.mark.parametrize("view", VIEWS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def _viewed(tensor: Tensor, view: str) -> Tensor:
    if tensor.dim() == 3 and view == "channels_last":
        pytest.skip("torch has no channels_last in one dimension")
    result = VIEWS[view](tensor)
    if view != "expanded_batch":
        assert torch.equal(result, tensor)
    return result


def _strides(results: list[Tensor]) -> list[tuple[int, ...]]:
    return [t.stride() for t in results]


def _like(output: Tensor) -> Tensor:
    """An incoming gradient of the output's values and strides, as most operations would send."""
    return output.detach().clone(memory_format=torch.preserve_format)


@shapes
@views
@pytest.mark.parametrize("weight_view", ["contiguous", "channels_last"])
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
def test_convolution(shape: tuple[int, ...], view: str, weight_view: str, transposed: bool) -> None:
    """All three tensors in any layout; with channels_last weights alone too, where torch's output is channels_last."""
    spatial, make = len(shape) - 2, numerics.integers()
    x = _viewed(make(*shape), view)
    weight_shape = (shape[1], 4) if transposed else (4, shape[1])
    w = _viewed(make(*weight_shape, *[3] * spatial), weight_view)
    op = f"{'conv_transpose' if transposed else 'conv'}{spatial}d"
    expected = getattr(F, op)(x, w, padding=1)
    actual = getattr(convext.functional, op)(x, w, padding=1)
    numerics.assert_equal(actual, expected)
    assert actual.stride() == expected.stride()
    grad_output = _like(expected)
    theirs = peer.results(lambda x, w: getattr(F, op)(x, w, padding=1), [x, w], grad_output)
    ours = peer.results(lambda x, w: getattr(convext.functional, op)(x, w, padding=1), [x, w], grad_output)
    for a, e in zip(ours, theirs, strict=True):
        numerics.assert_equal(a, e)
    assert _strides(ours) == _strides(theirs)


@shapes
@views
@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
def test_pooling(shape: tuple[int, ...], view: str, kind: str) -> None:
    spatial = len(shape) - 2
    x = _viewed(numerics.integers()(*shape), view)
    op = f"{kind}{spatial}d"
    theirs, ours = ((lambda x, of=of: getattr(of, op)(x, 3, 1, 1)) for of in (F, convext.functional))
    if op == "avg_pool3d" and min(shape[2:]) < 3:
        pytest.skip("torch's avg_pool3d refuses an input smaller than the window, padded or not")
    grad_output = _like(ours(x))
    expected = peer.results(theirs, [x], grad_output)
    actual = peer.results(ours, [x], grad_output)
    if kind == "max_pool":
        for a, e in zip(actual, expected, strict=True):
            numerics.assert_equal(a, e)
    else:
        true, bounds = peer.expected_and_bounds(theirs, [x], grad_output, terms=3**spatial + 2)
        for a, e, bound in zip(actual, true, bounds, strict=True):
            numerics.assert_within(a, e, bound)
    if op == "avg_pool3d" and convext.ops.is_channels_last(x):
        assert _strides(expected) != _strides(actual)
        for t in actual:
            assert t.is_contiguous(memory_format=torch.channels_last_3d)
    elif spatial == 1 and view in ("transposed", "sliced_channels_last"):
        for t in actual:
            assert t.is_contiguous()
    else:
        assert _strides(actual) == _strides(expected)


@pytest.mark.parametrize("view", ["contiguous", "channels_last"])
def test_max_pooling_indices_have_the_outputs_format(view: str) -> None:
    x = _viewed(numerics.integers()(2, 3, 6, 7), view)
    (_, actual), (_, expected) = (f(x, 2, return_indices=True) for f in (convext.functional.max_pool2d, F.max_pool2d))
    numerics.assert_equal(actual, expected)
    assert actual.stride() == expected.stride()


@pytest.mark.parametrize("view", ["contiguous", "channels_last", "sliced_width", "expanded_batch", "transposed"])
@pytest.mark.parametrize("op", ["conv2d", "max_pool2d", "avg_pool2d"])
def test_the_incoming_gradient_may_have_any_strides(op: str, view: str) -> None:
    """Including those of sum().backward(): every element the same one."""
    make = numerics.integers()
    x, w = make(2, 3, 6, 8), make(4, 3, 2, 2)
    arguments = (w,) if op == "conv2d" else (2, 2)
    ours, theirs = ((lambda x, of=of: getattr(of, op)(x, *arguments)) for of in (convext.functional, F))
    output = theirs(x)
    grad_output = VIEWS[view](make(*output.shape))
    expected = peer.results(theirs, [x], grad_output)[1]
    numerics.assert_equal(peer.results(ours, [x], grad_output)[1], expected)
    numerics.assert_equal(
        peer.results(ours, [x], torch.ones(()).expand_as(output))[1],
        peer.results(theirs, [x], torch.ones_like(output))[1],
    )


@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (1, 3, 96, 100), (3, 2, 4, 8), (2, 4, 3, 31), (2, 3, 3, 5, 6), (1, 5, 4, 4)]
)
@pytest.mark.parametrize("shown", ["contiguous", "sliced_width", "offset"])
def test_images_are_laid_out_channels_last(isa: str, shape: tuple[int, ...], shown: str) -> None:
    """Vectors, what is left of them, and the boundaries of tasks; from memory that begins anywhere."""
    x = torch.randn(shape)
    format = calls.memory_format(x.dim() - 2, True)
    result = _C.channels_last(VIEWS[shown](x))
    assert result is not None
    assert torch.equal(result, x)
    assert result.stride() == x.contiguous(memory_format=format).stride()


def test_layouts_of_images_that_need_no_copy_or_torch() -> None:
    flat = torch.randn(2, 3, 1, 1)
    laid_out = torch.randn(2, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    for x in (flat, laid_out):
        result = _C.channels_last(x)
        assert result is not None
        assert result.data_ptr() == x.data_ptr()
    for dtype in (torch.float64, torch.float16):
        x = torch.randn(2, 3, 5, 4).to(dtype)
        result = _C.channels_last(x)
        assert result is not None
        assert torch.equal(result, x)
        assert result.is_contiguous(memory_format=torch.channels_last)
    empty = _C.channels_last(torch.randn(0, 3, 4, 5))
    assert empty is not None
    assert empty.shape == (0, 3, 4, 5)
    assert _C.channels_last(torch.randn(3, 4, 5)) is None
    assert _C.channels_last(torch.randn(1, 3, 4, 5, requires_grad=True)) is None
    assert _C.channels_last("image") is None
