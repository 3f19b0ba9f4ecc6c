"""Gradients of every order, numerically checked; what is saved for them; when there is no graph at all.

Function transforms (torch.func) are test_transforms.py's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

import convext
import convext.functional as C
from convext import ops
from convext.padding import PADDING_MODES
from tests import numerics, peer

# name of the case: function, shapes of its operands, keywords. Tiny, so that every derivative can be looked at.
CONV_CASES: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "conv1d": ("conv1d", ((2, 2, 5), (2, 2, 3), (2,)), {"padding": 1, "stride": 2}),
    "conv2d": ("conv2d", ((1, 2, 4, 3), (2, 2, 3, 2), (2,)), {"padding": 1}),
    "conv3d": ("conv3d", ((1, 1, 3, 2, 3), (2, 1, 2, 2, 2), (2,)), {"padding": (1, 0, 1)}),
    "stride_dilation": ("conv2d", ((1, 2, 5, 5), (1, 2, 2, 2)), {"stride": (1, 2), "dilation": (2, 1), "padding": 1}),
    "groups": ("conv2d", ((1, 4, 3, 3), (4, 2, 2, 2)), {"groups": 2}),
    "depthwise": ("conv1d", ((2, 3, 4), (6, 1, 2), (6,)), {"groups": 3}),
    "flip_kernel": ("conv2d", ((1, 2, 3, 4), (2, 2, 2, 3)), {"flip_kernel": True, "padding": 1}),
    "same_stride_2": ("conv2d", ((1, 1, 4, 5), (2, 1, 2, 3)), {"padding": "same", "stride": 2}),
    "unbatched": ("conv2d", ((2, 3, 3), (2, 2, 2, 2), (2,)), {}),
    **{
        mode: ("conv2d", ((1, 1, 3, 4), (2, 1, 2, 3), (2,)), {"padding": ((1, 2), (2, 0)), "padding_mode": mode})
        for mode in PADDING_MODES
    },
    "conv_transpose1d": ("conv_transpose1d", ((2, 2, 3), (2, 2, 3), (2,)), {"stride": 2, "output_padding": 1}),
    "conv_transpose2d": (
        "conv_transpose2d",
        ((1, 2, 2, 3), (2, 1, 3, 2), (2,)),
        {"stride": 2, "padding": 1, "groups": 2},
    ),
    "conv_transpose3d": ("conv_transpose3d", ((1, 1, 2, 2, 2), (1, 2, 2, 1, 2), (2,)), {"dilation": 2}),
}

POOL_CASES: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "max_pool1d": ("max_pool1d", ((2, 2, 6),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "max_pool2d": ("max_pool2d", ((1, 2, 4, 5),), {"kernel_size": 2, "stride": 1}),
    "max_pool2d_dilated": ("max_pool2d", ((1, 1, 5, 5),), {"kernel_size": 2, "dilation": 2, "ceil_mode": True}),
    "max_pool3d": ("max_pool3d", ((1, 1, 3, 4, 3),), {"kernel_size": 2, "padding": 1}),
    "max_pool_int32_places": ("max_pool1d", ((1, 1, 260),), {"kernel_size": 257, "stride": 1}),
    "avg_pool1d": ("avg_pool1d", ((2, 2, 6),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "avg_pool2d": ("avg_pool2d", ((1, 2, 4, 5),), {"kernel_size": 2, "dilation": 2, "count_include_pad": False}),
    "avg_pool3d": ("avg_pool3d", ((1, 1, 3, 4, 3),), {"kernel_size": 2, "padding": 1, "divisor_override": 3}),
}


def _cases() -> list[Any]:
    found = []
    for table, op in ((CONV_CASES, "conv2d"), (POOL_CASES, "max_pool2d")):
        for name, algorithm in itertools.product(table, ["auto", *convext.algorithms(op)]):
            found.append(pytest.param(*table[name], algorithm, id=f"{name}-{algorithm}"))
    return found


each_case = pytest.mark.parametrize(("op", "shapes", "kwargs", "algorithm"), _cases())


def prepared(
    op: str, shapes: tuple[tuple[int, ...], ...], kwargs: dict[str, Any], algorithm: str, distinct: bool = True
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The call as a function of its tensors, and the tensors; for pooling, values far enough apart to differentiate."""
    make = numerics.normals(torch.float64)
    operands = [make(*shape) for shape in shapes]
    if "max_pool" in op and distinct:
        order = torch.randperm(operands[0].numel(), generator=torch.Generator().manual_seed(1))
        operands = [order.double().view(shapes[0])]
    if algorithm != "auto":
        weight = {"weight": operands[1]} if "conv" in op else {}
        rest = {k: v for k, v in kwargs.items() if k not in ("count_include_pad", "divisor_override")}
        for verdict in convext.explain(op, operands[0], **weight, **rest).verdicts:
            if verdict.name == algorithm and verdict.refusal is not None:
                pytest.skip(f"{algorithm}: {verdict.refusal}")
    function = getattr(C, op)
    return lambda *tensors: function(*tensors, **kwargs, algorithm=algorithm), [t.requires_grad_() for t in operands]


@each_case
def test_first_derivatives(op: str, shapes: Any, kwargs: dict[str, Any], algorithm: str) -> None:
    """Reverse and forward mode, each also batched by vmap, against finite differences."""
    function, operands = prepared(op, shapes, kwargs, algorithm)
    fast = operands[0].numel() > 100
    assert gradcheck(
        function,
        operands,
        check_forward_ad=True,
        check_batched_grad=not fast,
        check_batched_forward_grad=not fast,
        fast_mode=fast,
    )


@each_case
def test_second_derivatives(op: str, shapes: Any, kwargs: dict[str, Any], algorithm: str) -> None:
    function, operands = prepared(op, shapes, kwargs, algorithm)
    fast = operands[0].numel() > 100
    assert gradgradcheck(
        function,
        operands,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=not fast,
        fast_mode=fast,
    )


@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_third_derivative(op: str) -> None:
    """Of (sum y^3 by operand): through the derivative of the derivative's operators."""
    make = numerics.normals(torch.float64)
    x, w = make(1, 2, 3, 3).requires_grad_(), make(2, 2, 2, 2).requires_grad_()

    def second(x: Tensor, w: Tensor) -> Tensor:
        y = getattr(C, op)(x, w, padding=1)
        dx, dw = torch.autograd.grad((y**3).sum(), (x, w), create_graph=True)
        ddx, ddw = torch.autograd.grad((dx**2).sum() + (dw**2).sum(), (x, w), create_graph=True)
        return (ddx * dx).sum() + (ddw * dw).sum()

    assert gradcheck(second, (x, w), fast_mode=True)


# Saved tensors -------------------------------------------------------------------------------------------------------


def saved_by(function: Callable[[], Any]) -> list[Tensor]:
    """The tensors that autograd keeps for the backward pass of function()."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    assert output.requires_grad
    return kept


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr()


@pytest.mark.parametrize(("kernel", "dtype"), [(16, torch.uint8), (17, torch.int32)], ids=["256_places", "289_places"])
def test_max_pooling_saves_its_places_alone(kernel: int, dtype: torch.dtype) -> None:
    """One byte per output where the window has at most 256 places, four above; neither input nor int64 indices."""
    x = torch.randn(2, 3, 20, 20, requires_grad=True)
    for spatial in (2, 1):
        y = x if spatial == 2 else x.flatten(2)
        window = kernel if spatial == 2 else kernel**2
        op = getattr(C, f"max_pool{spatial}d")
        (places,) = saved_by(lambda y=y, window=window, op=op: op(y, window))
        assert places.dtype == dtype
        assert places.shape == op(y, window).shape


def test_max_pooling_with_indices_saves_no_more() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    (places,) = saved_by(lambda: C.max_pool2d(x, 2, return_indices=True)[0])
    assert places.dtype == torch.uint8


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_average_pooling_saves_nothing(spatial: int) -> None:
    x = torch.randn(2, 3, *[6] * spatial, requires_grad=True)
    assert saved_by(lambda: getattr(C, f"avg_pool{spatial}d")(x, 2)) == []


@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_convolution_saves_what_its_backward_reads(op: str, mode: str) -> None:
    """For the input's gradient the weight, for the weight's the input itself, for the bias nothing; no padded copy."""
    transposed = op == "conv_transpose2d"
    if transposed and mode != "zeros":
        pytest.skip("a transposed convolution pads with zeros alone")
    kwargs: dict[str, Any] = {"padding": 1} if transposed else {"padding": 1, "padding_mode": mode}
    for needs in itertools.product([True, False], repeat=3):
        if not any(needs):
            continue
        x, w, b = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3), torch.randn(2)
        for tensor, wanted in zip((x, w, b), needs, strict=True):
            tensor.requires_grad_(wanted)
        kept = saved_by(lambda x=x, w=w, b=b: getattr(C, op)(x, w, b, **kwargs))
        expected = ([x] if needs[1] else []) + ([w] if needs[0] else [])
        assert len(kept) == len(expected)
        for tensor in expected:
            assert any(_same_memory(tensor, k) for k in kept)


# Graphs, or none -----------------------------------------------------------------------------------------------------


def _one_of_each(x: Tensor, w: Tensor) -> list[Tensor]:
    return [C.conv2d(x, w), C.conv_transpose2d(x, w), C.max_pool2d(x, 2), C.avg_pool2d(x, 2)]


def test_no_graph_where_none_is_asked_for() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    for y in _one_of_each(x, w):
        assert y.grad_fn is None
    x.requires_grad_()
    with torch.no_grad():
        for y in _one_of_each(x, w):
            assert not y.requires_grad
    with torch.inference_mode():
        for y in _one_of_each(x, w):
            assert y.is_inference()
    for y in _one_of_each(x, w):
        assert y.requires_grad


def test_the_places_are_computed_for_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    op = ops.max_pool

    def spy(*args: Any) -> Any:
        asked.append(args[-2])
        return op(*args)

    monkeypatch.setattr(ops, "max_pool", spy)
    monkeypatch.setattr(C.pooling, "is_dynamo_compiling", lambda: True)  # the road through Python
    x = torch.randn(1, 1, 4, 4)
    C.max_pool2d(x, 2)
    C.max_pool2d(x, 2, return_indices=True)
    C.max_pool2d(x.requires_grad_(), 2)
    assert asked == [False, True, True]


def test_the_indices_carry_no_gradient() -> None:
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    output, indices = C.max_pool2d(x, 2, return_indices=True)
    assert output.requires_grad
    assert not indices.requires_grad


def test_only_the_gradients_asked_for_are_computed() -> None:
    x, w, b = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3, requires_grad=True), torch.randn(2)
    C.conv2d(x, w, b).sum().backward()
    assert w.grad is not None
    assert x.grad is None
    assert b.grad is None


def test_a_graph_can_be_run_twice_and_then_no_more() -> None:
    x, w = torch.randn(1, 2, 6, 6, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
    for y in _one_of_each(x, w)[:3]:  # average pooling saves nothing that could be gone
        once = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
        again = torch.autograd.grad(y.sum(), x)[0]
        numerics.assert_same_bits(again, once)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(y.sum(), x)


def test_a_change_in_place_between_forward_and_backward_is_noticed() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3, requires_grad=True)
    y = C.conv2d(x, w)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_hooks_see_and_change_the_gradients() -> None:
    x, w = torch.randn(1, 2, 6, 6, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
    for y in _one_of_each(x, w):
        (plain,) = torch.autograd.grad(y, x, torch.full_like(y, 2.0), retain_graph=True)
        seen: list[Tensor] = []

        def double(grad: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(grad)
            return grad * 2

        handles = [x.register_hook(double), y.register_hook(double)]
        (hooked,) = torch.autograd.grad(y.sum(), x)
        for handle in handles:
            handle.remove()
        numerics.assert_equal(seen[0], torch.ones_like(y))
        numerics.assert_equal(seen[1], plain)
        numerics.assert_equal(hooked, plain * 2)


def test_gradients_accumulate_over_uses_of_one_layer() -> None:
    layer = convext.Conv2d(2, 2, 3, padding=1)
    x = numerics.integers()(1, 2, 5, 5)
    with torch.no_grad():
        layer.weight.copy_(numerics.integers(largest=1)(2, 2, 3, 3))
    theirs = torch.nn.Conv2d(2, 2, 3, padding=1)
    theirs.load_state_dict(layer.state_dict())
    for net in (layer, theirs):
        net.bias.data.zero_()
        (net(net(x)) + net(x)).sum().backward()
    assert layer.weight.grad is not None
    assert theirs.weight.grad is not None
    numerics.assert_equal(layer.weight.grad, theirs.weight.grad)


# Reproducible --------------------------------------------------------------------------------------------------------


@each_case
def test_gradients_are_deterministic(op: str, shapes: Any, kwargs: dict[str, Any], algorithm: str) -> None:
    """Under torch's switch nothing is refused, and two runs give the same bits, overlapping windows and all."""
    function, operands = prepared(op, shapes, kwargs, algorithm, distinct=False)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for count in (1, 2):
            with numerics.threads(count):
                y = function(*operands)
                runs.append(peer.results(function, operands, torch.linspace(-1, 1, y.numel()).double().view(y.shape)))
    finally:
        torch.use_deterministic_algorithms(before)
    for once, again in zip(*runs, strict=True):
        numerics.assert_same_bits(again, once)
