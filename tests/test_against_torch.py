"""convext's layers and functions next to torch's own: values, gradients, shapes, over a grid and random geometry.

Floats are held to the derived bound around torch's float64 result, integers are exact. Memory formats, views and
exceptions have files of their own (test_memory_formats.py, test_errors_like_torch.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given

import convext
import convext.functional
from benchmarks.shapes import ConvProblem, PoolProblem
from tests import cases, numerics, peer, winograd

CONV_ALGORITHMS = ["auto", *convext.algorithms("conv2d")]
POOL_ALGORITHMS = ["auto", *convext.algorithms("max_pool2d")]

conv_algorithms = pytest.mark.parametrize("algorithm", CONV_ALGORITHMS)
pool_algorithms = pytest.mark.parametrize("algorithm", POOL_ALGORITHMS)

# (in_channels, out_channels, kernel_size), the rest. Ints serve every number of dimensions.
CONV_GRID: tuple[tuple[tuple[int, int, int], dict[str, Any]], ...] = (
    ((3, 5, 1), {}),
    ((3, 5, 3), {"padding": 1}),
    ((3, 5, 2), {"bias": False}),
    ((2, 3, 3), {"stride": 2, "padding": 1}),
    ((2, 3, 2), {"stride": 3}),
    ((2, 3, 2), {"dilation": 3, "padding": 2}),
    ((2, 3, 3), {"stride": 2, "dilation": 2, "padding": 3}),
    ((4, 6, 3), {"groups": 2, "padding": 1}),
    ((4, 4, 3), {"groups": 4, "padding": 1, "stride": 2}),
    ((3, 9, 2), {"groups": 3}),
    ((2, 3, 4), {"padding": "same"}),
    ((2, 3, 3), {"padding": "same", "dilation": 2}),
    ((2, 3, 3), {"padding": "valid"}),
    *(((4, 4, 3), {"padding": 2, "padding_mode": mode, "groups": 2}) for mode in ("reflect", "replicate", "circular")),
    *(((2, 3, 4), {"padding": "same", "padding_mode": m}) for m in ("reflect", "replicate", "circular")),
)

TRANSPOSED_GRID: tuple[tuple[tuple[int, int, int], dict[str, Any]], ...] = (
    ((3, 5, 1), {}),
    ((3, 5, 3), {"padding": 1}),
    ((3, 5, 2), {"stride": 2, "bias": False}),
    ((2, 3, 4), {"stride": 2, "padding": 1}),
    ((2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    ((2, 3, 2), {"stride": 3}),
    ((2, 3, 2), {"dilation": 3}),
    ((2, 3, 3), {"stride": 2, "dilation": 2, "padding": 2}),
    ((2, 3, 2), {"dilation": 2, "output_padding": 1}),
    ((2, 3, 2), {"stride": 2, "dilation": 4, "output_padding": 3, "padding": 1}),
    ((4, 6, 3), {"groups": 2, "padding": 1, "stride": 2}),
    ((4, 4, 3), {"groups": 4}),
)

MAX_GRID: tuple[tuple[int, dict[str, Any]], ...] = (
    (2, {}),
    (3, {"stride": 2, "padding": 1}),
    (3, {"stride": 1, "padding": 1}),
    (2, {"stride": 3}),
    (2, {"dilation": 2, "padding": 1}),
    (3, {"stride": 2, "ceil_mode": True}),
    (2, {"stride": 3, "padding": 1, "ceil_mode": True}),
    (1, {}),
)

AVERAGE_GRID: tuple[tuple[int, dict[str, Any]], ...] = (
    (2, {}),
    (3, {"stride": 2, "padding": 1}),
    (3, {"stride": 2, "padding": 1, "count_include_pad": False}),
    (2, {"stride": 3, "padding": 1, "ceil_mode": True}),
    (3, {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
    (3, {"stride": 1, "padding": 1}),
    (2, {"stride": 2, "divisor_override": 3}),
    (3, {"stride": 2, "padding": 1, "divisor_override": -2}),
)


def _per_dimension(name: str, padding: tuple[int, ...], stride: tuple[int, ...]) -> dict[str, Any]:
    spatial = peer.spatial_of(name)
    return {"padding": padding[:spatial], "stride": stride[:spatial]}


def _described(value: object) -> str | None:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "defaults"
    return "-".join(map(str, value)) if isinstance(value, tuple) else None


def check_layer(name: str, args: tuple[int, ...], kwargs: dict[str, Any], algorithm: str, dtype: torch.dtype) -> None:
    """Batched and unbatched, floats and integers."""
    ours, theirs = peer.pair(name, *args, algorithm=algorithm, **kwargs)
    shape = (2, args[0], *peer.small_size(peer.spatial_of(name)))
    peer.skip_if_refused(ours, torch.empty(shape, dtype=dtype))
    make, small = numerics.normals(dtype), numerics.integers(dtype, largest=1)
    f, g = peer.as_function(ours), peer.as_function(theirs)
    operands = peer.layer_operands(theirs, small(*shape), small)
    same = winograd.assert_nearest if algorithm == "winograd" else numerics.assert_equal
    peer.assert_equal_on_integers(f, g, operands, same)
    peer.assert_equal_on_integers(f, g, [operands[0][0], *operands[1:]], same)
    if algorithm == "winograd":
        peer.assert_near(f, g, peer.layer_operands(theirs, make(*shape), make), make, winograd.NORM_WISE)
        return
    stored = 2 if "Transpose" in name and kwargs.get("bias", True) else 1  # its bias is added to the stored sum
    peer.assert_agree(f, g, peer.layer_operands(theirs, make(*shape), make), make, stored=stored)


@pytest.mark.parametrize("name", peer.CONVOLUTIONS)
@pytest.mark.parametrize(("args", "kwargs"), CONV_GRID, ids=_described)
@conv_algorithms
def test_convolution(
    name: str, args: tuple[int, ...], kwargs: dict[str, Any], algorithm: str, dtype: torch.dtype
) -> None:
    check_layer(name, args, kwargs, algorithm, dtype)


@pytest.mark.parametrize("name", peer.TRANSPOSED)
@pytest.mark.parametrize(("args", "kwargs"), TRANSPOSED_GRID, ids=_described)
@conv_algorithms
def test_transposed_convolution(
    name: str, args: tuple[int, ...], kwargs: dict[str, Any], algorithm: str, dtype: torch.dtype
) -> None:
    check_layer(name, args, kwargs, algorithm, dtype)


@pytest.mark.parametrize("name", peer.CONVOLUTIONS + peer.TRANSPOSED)
@conv_algorithms
def test_arguments_per_dimension(name: str, algorithm: str) -> None:
    spatial = peer.spatial_of(name)
    kernel, dilation = (3, 2, 4)[:spatial], (1, 2, 1)[:spatial]
    ours, theirs = peer.pair(
        name, 2, 3, kernel, algorithm=algorithm, dilation=dilation, **_per_dimension(name, (1, 0, 2), (2, 1, 3))
    )
    make = numerics.normals()
    x = make(2, 2, *peer.small_size(spatial))
    peer.skip_if_refused(ours, x)
    peer.assert_agree(peer.as_function(ours), peer.as_function(theirs), peer.layer_operands(theirs, x, make), make)


def check_max_pool(ours: torch.nn.Module, theirs: torch.nn.Module, x: torch.Tensor) -> None:
    """Output, indices and gradient are torch's, exactly: x and the incoming gradient hold small integers, NaN, ties."""
    for layer in (ours, theirs):
        layer.return_indices = False
    peer_x = x.detach().requires_grad_()
    our_x = x.detach().requires_grad_()
    expected, actual = theirs(peer_x), ours(our_x)
    numerics.assert_equal(actual.detach(), expected.detach())
    grad_output = numerics.integers(x.dtype, largest=1, seed=5)(*expected.shape)
    (expected_grad,) = torch.autograd.grad(expected, peer_x, grad_output)
    (actual_grad,) = torch.autograd.grad(actual, our_x, grad_output)
    numerics.assert_equal(actual_grad, expected_grad, "gradient")
    for layer in (ours, theirs):
        layer.return_indices = True
    (output, indices), (torch_output, torch_indices) = ours(x), theirs(x)
    numerics.assert_equal(output, torch_output)
    numerics.assert_equal(indices, torch_indices, "indices")


@pytest.mark.parametrize("name", peer.MAX_POOLS)
@pytest.mark.parametrize(("kernel", "kwargs"), MAX_GRID, ids=_described)
@pool_algorithms
def test_max_pooling(name: str, kernel: int, kwargs: dict[str, Any], algorithm: str, dtype: torch.dtype) -> None:
    ours, theirs = peer.pair(name, kernel, algorithm=algorithm, **kwargs)
    x = numerics.integers(dtype, largest=2)(2, 3, *peer.small_size(peer.spatial_of(name)))  # five values: many ties
    peer.skip_if_refused(ours, x)
    check_max_pool(ours, theirs, x)
    check_max_pool(ours, theirs, x[0])
    x.view(-1)[torch.randint(x.numel(), (x.numel() // 9,), generator=torch.Generator().manual_seed(3))] = float("nan")
    x[1, 2] = float("nan")
    x[1, 1] = -float("inf")
    check_max_pool(ours, theirs, x)


@pytest.mark.parametrize("dtype", numerics.INTEGERS, ids=numerics.name_of)
@pytest.mark.parametrize("name", ["MaxPool2d", "MaxPool3d"])
@pool_algorithms
def test_max_pooling_of_integers(name: str, algorithm: str, dtype: torch.dtype) -> None:
    """torch has none in one dimension (test_errors_like_torch.py says so)."""
    info = torch.iinfo(dtype)
    ours, theirs = peer.pair(name, 3, 2, 1, algorithm=algorithm, return_indices=True)
    shape = (2, 3, *peer.small_size(peer.spatial_of(name)))
    x = torch.randint(info.min, info.max, shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x[0, 0] = info.min
    peer.skip_if_refused(ours, x)
    for actual, expected in zip(ours(x), theirs(x), strict=True):
        numerics.assert_equal(actual, expected)


@pytest.mark.parametrize("name", peer.AVERAGE_POOLS)
@pytest.mark.parametrize(("kernel", "kwargs"), AVERAGE_GRID, ids=_described)
@pool_algorithms
def test_average_pooling(name: str, kernel: int, kwargs: dict[str, Any], algorithm: str, dtype: torch.dtype) -> None:
    if name == "AvgPool1d" and "divisor_override" in kwargs:
        pytest.skip("torch.nn.AvgPool1d has no divisor_override")
    ours, theirs = peer.pair(name, kernel, algorithm=algorithm, **kwargs)
    spatial = peer.spatial_of(name)
    make = numerics.normals(dtype)
    x = make(2, 3, *peer.small_size(spatial))
    peer.skip_if_refused(ours, x)
    for operand in (x, x[0]):  # the divisor costs two roundings more than the sum: 1 / divisor, and the product
        peer.assert_agree(ours, theirs, [operand], make, terms=kernel**spatial + 2)


# Random geometry -----------------------------------------------------------------------------------------------------


def _assert_agree(
    algorithm: str, ours: peer.Function, theirs: peer.Function, operands: list[torch.Tensor], make: numerics.Maker
) -> None:
    """Under the bound of a plain sum, or norm-wise within winograd's own."""
    if algorithm == "winograd":
        peer.assert_near(ours, theirs, operands, make, winograd.NORM_WISE, cancels=True)
    else:
        peer.assert_agree(ours, theirs, operands, make)


@conv_algorithms
@given(problem=cases.conv_problems(torch_padding=True))
def test_convolution_of_random_geometry(algorithm: str, problem: ConvProblem) -> None:
    op = f"conv{problem.spatial}d"
    make = numerics.normals()
    operands = [t for t in problem.operands(make) if t is not None]
    options = {k: getattr(problem, k) for k in ("stride", "padding", "dilation", "groups")}
    verdicts = {v.name: v for v in convext.explain(op, operands[0], operands[1], None, **options).verdicts}
    if algorithm != "auto" and verdicts[algorithm].refusal is not None:
        return
    ours, theirs = getattr(convext.functional, op), getattr(F, op)
    _assert_agree(
        algorithm, lambda *t: ours(*t, **options, algorithm=algorithm), lambda *t: theirs(*t, **options), operands, make
    )


@conv_algorithms
@given(problem=cases.conv_problems(torch_padding=True))
def test_transposed_convolution_of_random_geometry(algorithm: str, problem: ConvProblem) -> None:
    """The transposed convolution that maps the problem's output back to its input size."""
    op = f"conv_transpose{problem.spatial}d"
    make = numerics.normals()
    _, weight, _ = problem.operands(make)
    strides, pads, dilations, *_ = problem.options
    assert all(before == after for before, after in zip(pads[::2], pads[1::2], strict=True))
    least = [
        (o - 1) * s - 2 * p + d * (k - 1) + 1
        for o, s, p, d, k in zip(problem.output_shape[2:], strides, pads[::2], dilations, problem.kernel, strict=True)
    ]
    options = {
        "stride": strides,
        "padding": pads[::2],
        "output_padding": [n - low for n, low in zip(problem.size, least, strict=True)],
        "groups": problem.groups,
        "dilation": dilations,
    }
    operands = [make(*problem.output_shape), weight, *([make(problem.channels[0])] if problem.bias else [])]
    verdicts = {v.name: v for v in convext.explain(op, operands[0], operands[1], None, **options).verdicts}
    if algorithm != "auto" and verdicts[algorithm].refusal is not None:
        return
    ours, theirs = getattr(convext.functional, op), getattr(F, op)
    assert all(p < s for p, s in zip(options["output_padding"], strides, strict=True))
    _assert_agree(
        algorithm, lambda *t: ours(*t, **options, algorithm=algorithm), lambda *t: theirs(*t, **options), operands, make
    )


def _pool_layers(problem: PoolProblem, algorithm: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    name = f"{'Avg' if problem.average else 'Max'}Pool{problem.spatial}d"
    options = {"stride": problem.stride, "padding": problem.padding, "ceil_mode": problem.ceil_mode}
    if problem.average:
        options["count_include_pad"] = problem.count_include_pad
        if problem.spatial > 1:
            options["divisor_override"] = problem.divisor_override
    else:
        options["dilation"] = problem.dilation
    return peer.pair(name, problem.kernel, algorithm=algorithm, **options)


@pool_algorithms
@given(problem=cases.pool_problems(average=False, torch_padding=True))
def test_max_pooling_of_random_geometry(algorithm: str, problem: PoolProblem) -> None:
    ours, theirs = _pool_layers(problem, algorithm)
    x = numerics.integers()(*problem.input_shape)
    peer.skip_if_refused(ours, x)
    assume(not theirs(x).isinf().any())  # a window that sees nothing: see test_errors_like_torch.py
    check_max_pool(ours, theirs, x)


@pool_algorithms
@given(problem=cases.pool_problems(average=True, torch_padding=True))
def test_average_pooling_of_random_geometry(algorithm: str, problem: PoolProblem) -> None:
    ours, theirs = _pool_layers(problem, algorithm)
    make = numerics.normals()
    x = make(*problem.input_shape)
    peer.skip_if_refused(ours, x)
    small = any(n < k for n, k in zip(problem.size, problem.kernel, strict=True))
    assume(not (problem.spatial == 3 and small))  # torch refuses: see test_errors_like_torch.py
    window = 1
    for k in problem.kernel:
        window *= k
    peer.assert_agree(ours, theirs, [x], make, terms=window + 2)


# Empty batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", peer.CONVOLUTIONS + peer.TRANSPOSED + peer.MAX_POOLS + peer.AVERAGE_POOLS)
def test_an_empty_batch(name: str) -> None:
    """No image: an empty output of torch's shape, an empty gradient of the input, zeros for the parameters."""
    args = (3, 5, 3) if "Conv" in name else (3,)
    ours, theirs = peer.pair(name, *args)
    x = torch.empty(0, 3, *peer.small_size(peer.spatial_of(name)))
    actual, expected = ours(x.requires_grad_()), theirs(x)
    assert actual.shape == expected.shape
    actual.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for parameter in ours.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
