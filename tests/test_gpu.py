"""The same problems on a GPU: ``make test-gpu`` (tests/on_gpu.py). Every CUDA kernel against naive on the CPU, bit for
bit on integers (winograd: after rounding to the nearest). Those marked lean are few and small: they are run once more
under compute-sanitizer.

CONVEXT_TEST_DEVICE=cpu runs this file's own logic, with the CPU's algorithms, where there is no GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

import convext
from benchmarks.shapes import ConvProblem, PoolProblem
from convext import functional as F
from convext import ops
from convext.choice import DIRECTIONS
from tests import calls, cases, numerics, winograd
from tests.test_algorithm_table import names_in_table

DEVICE = torch.device(os.environ.get("CONVEXT_TEST_DEVICE", "cuda"))
READY = DEVICE.type == "cpu" or (torch.cuda.is_available() and bool(convext.algorithms("conv2d", "cuda")))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not READY, reason="no CUDA device, or convext was built without CUDA kernels"),
]

# In every build the names are collected, so that the list of tests does not depend on the machine.
only_here = pytest.mark.skipif(DEVICE.type == "cpu", reason="an algorithm for GPUs")
conv_algorithms = pytest.mark.parametrize("algorithm", names_in_table(DEVICE.type, "conv"))
pool_algorithms = pytest.mark.parametrize("algorithm", names_in_table(DEVICE.type, "pool"))
CONVOLUTIONS = cases.CONVOLUTIONS + cases.CONV_HOPPER
lean = pytest.mark.lean
LEAN_POOLS = {
    *("channels_5", "rows_65", "stem_3_stride_2_padding_1", "halves_odd_sizes", "small_planes", "dilation_2"),
    *("window_13", "window_257_places", "per_side", "pool1d", "pool3d_halves", "adaptive_7_to_5", "adaptive_volume"),
}
"""One for each way through the kernels."""


def check_conv(problem: ConvProblem, algorithm: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Every direction that the algorithm does itself, on small integers, against naive on the CPU."""
    operands = calls.conv_operands(problem, numerics.integers(dtype), channels_last)
    there = operands.map(lambda t: t.to(DEVICE))
    for direction in calls.directions(problem, there, algorithm):
        expected = calls.run_conv(problem, direction, operands, "naive")
        actual = calls.run_conv(problem, direction, there, algorithm)
        what = f"{direction}, channels_last={channels_last}"
        assert actual.device.type == DEVICE.type
        if algorithm == "winograd":
            winograd.assert_nearest(actual.cpu(), expected, what)
        else:
            numerics.assert_same_bits(actual.cpu(), expected, what)


@pytest.mark.parametrize("problem", CONVOLUTIONS, ids=str)
@conv_algorithms
def test_convolutions_equal_naive_on_the_cpu(problem: ConvProblem, algorithm: str, dtype: torch.dtype) -> None:
    for channels_last in calls.layouts(problem.spatial):
        check_conv(problem, algorithm, dtype, channels_last)


@lean
@pytest.mark.parametrize("problem", cases.CONV_CORE[::2], ids=str)
@conv_algorithms
def test_few_convolutions(problem: ConvProblem, algorithm: str) -> None:
    for dtype in (torch.float32, torch.float16):
        check_conv(problem, algorithm, dtype, channels_last=problem.spatial > 1 and dtype == torch.float16)


@pytest.mark.parametrize("problem", (p for p in CONVOLUTIONS if "core" in p.tags), ids=str)
@conv_algorithms
def test_convolutions_stay_within_the_bound(problem: ConvProblem, algorithm: str, dtype: torch.dtype) -> None:
    operands = calls.conv_operands(problem, numerics.normals(dtype), channels_last=problem in cases.CONV_HOPPER)
    there = operands.map(lambda t: t.to(DEVICE))
    directions = calls.directions(problem, there, algorithm)
    expected = calls.reference_conv(problem, operands)
    bounds = calls.conv_bounds(problem, operands, expected, dtype, algorithm)
    with torch.backends.cudnn.flags(allow_tf32=False):
        for direction in directions:
            actual = calls.run_conv(problem, direction, there, algorithm)
            again = calls.run_conv(problem, direction, there, algorithm)
            numerics.assert_same_bits(actual, again, f"{direction}, second run")
            numerics.assert_within(actual.cpu(), expected[direction], bounds[direction], direction)


@only_here
@pytest.mark.parametrize("problem", cases.CONV_CORE, ids=str)
def test_tf32_rounds_each_factor_to_ten_bits(problem: ConvProblem) -> None:
    """Two factors, each off by 2^-11 of itself, on top of float32's own error; and without torch's leave, none."""
    operands = calls.conv_operands(problem, numerics.normals(torch.float32))
    there = operands.map(lambda t: t.to(DEVICE))
    expected = calls.reference_conv(problem, operands)
    bounds = calls.conv_bounds(problem, operands, expected, torch.float32)
    magnitude = calls.reference_conv(problem, operands.map(torch.abs))
    with torch.backends.cudnn.flags(allow_tf32=True):
        for direction in DIRECTIONS:
            actual = calls.run_conv(problem, direction, there, "implicit_gemm").cpu()
            bound = bounds[direction] * (1 + 2**-9) + magnitude[direction] * (2**-10 + 2**-22)
            numerics.assert_within(actual, expected[direction], bound, direction)


FEW_POOLS = [p for p in cases.MAX_POOLS if p.name in LEAN_POOLS]


@pytest.mark.parametrize("problem", cases.MAX_POOLS, ids=str)
@pool_algorithms
def test_max_pools_equal_naive_on_the_cpu(problem: PoolProblem, algorithm: str, dtype: torch.dtype) -> None:
    check_max_pool(problem, algorithm, dtype)


@lean
@pytest.mark.parametrize("problem", FEW_POOLS, ids=str)
@pool_algorithms
def test_few_pools(problem: PoolProblem, algorithm: str) -> None:
    for dtype in (torch.float32, torch.float16):
        check_max_pool(problem, algorithm, dtype)
        check_average_pool(problem.with_(average=True), algorithm, dtype)
        # 16 channels: packs of both dtypes
        check_max_pool(problem.with_(channels=16), algorithm, dtype)
        check_average_pool(problem.with_(channels=16, average=True), algorithm, dtype)


def check_max_pool(problem: PoolProblem, algorithm: str, dtype: torch.dtype) -> None:
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(numerics.integers(dtype), channels_last)
        there = x.to(DEVICE)
        calls.skip_if_refused(calls.explain_pool(problem, there), algorithm)
        output, places = calls.run_max_pool(problem, x, "naive")
        output_there, places_there = calls.run_max_pool(problem, there, algorithm)
        numerics.assert_same_bits(output_there.cpu(), output, "output")
        numerics.assert_same_bits(places_there.cpu(), places, "places")
        grad = numerics.integers(dtype, seed=2)(*output.shape).contiguous(
            memory_format=calls.memory_format(problem.spatial, channels_last)
        )
        expected = calls.run_max_pool_backward(problem, grad, places, "naive")
        actual = calls.run_max_pool_backward(problem, grad.to(DEVICE), places_there, algorithm)
        numerics.assert_same_bits(actual.cpu(), expected, "gradient")


@pytest.mark.parametrize("problem", cases.AVERAGE_POOLS, ids=str)
@pool_algorithms
def test_average_pools_equal_naive_on_the_cpu(problem: PoolProblem, algorithm: str, dtype: torch.dtype) -> None:
    check_average_pool(problem, algorithm, dtype)


def check_average_pool(problem: PoolProblem, algorithm: str, dtype: torch.dtype) -> None:
    """Sums of integers are exact and the quotient is rounded once, so both devices give the same bits; the gradient
    of a whole multiple of every divisor likewise."""
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(numerics.integers(dtype), channels_last)
        there = x.to(DEVICE)
        calls.skip_if_refused(calls.explain_pool(problem, there), algorithm)
        expected = calls.run_avg_pool(problem, x, "naive")
        numerics.assert_equal(calls.run_avg_pool(problem, there, algorithm).cpu(), expected, "output")
        grad = (calls.divisors(problem).expand(problem.output_shape) * 2).to(dtype)
        expected = calls.run_avg_pool_backward(problem, grad, "naive")
        actual = calls.run_avg_pool_backward(problem, grad.to(DEVICE), algorithm)
        numerics.assert_equal(actual.cpu(), expected, "gradient")


@lean
def test_pools_without_a_table_equal_the_cpus(dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = numerics.integers(dtype)(2, 33, 9, 8).contiguous(memory_format=layout)
        samples = torch.rand(2, 33, 2).to(dtype).clamp_max(0.99)
        values, indices = torch.nn.functional.max_pool2d(x, 3, 2, return_indices=True)
        for op, args in (
            (ops.k_max_pool, (x, 5)),
            (ops.max_unpool, (values, indices, [9, 8])),
            (ops.fractional_max_pool, (x, samples, [2, 3], [5, 6], True)),
        ):
            there = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in args]
            results = [result if isinstance(result, tuple) else (result,) for result in (op(*there), op(*args))]
            for away, here in zip(*results, strict=True):
                numerics.assert_same_bits(away.cpu(), here, str(op))
        output, places = ops.fractional_max_pool(x, samples, [2, 3], [5, 6], True)
        rest = (places, samples)
        expected = ops.fractional_max_pool_backward(output, *rest, x.shape, [2, 3])
        moved = [t.to(DEVICE) for t in (output, *rest)]
        numerics.assert_same_bits(ops.fractional_max_pool_backward(*moved, x.shape, [2, 3]).cpu(), expected, "gradient")


@conv_algorithms
def test_gradcheck(algorithm: str) -> None:
    if algorithm == "implicit_gemm":
        pytest.skip("float64 is refused")
    make = numerics.normals(torch.float64)
    x, w, b = (make(*shape).to(DEVICE).requires_grad_() for shape in ((2, 4, 6, 5), (6, 2, 3, 3), (6,)))
    stride = 1 if algorithm == "winograd" else 2

    stride, padding = 1 if algorithm == "winograd" else 2, ((1, 0), (2, 1))
    told = convext.explain("conv2d", x, w, b, stride, padding, 1, 2, padding_mode="reflect")
    calls.skip_if_refused(told, algorithm)

    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, w, b, stride, padding, 1, 2, padding_mode="reflect", algorithm=algorithm)

    assert torch.autograd.gradcheck(function, (x, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, w, b))


def test_a_graph_can_be_captured_and_replayed() -> None:
    """Forward and all gradients of convolution and pooling: current stream only, no synchronisation."""
    if DEVICE.type == "cpu":
        pytest.skip("graphs are a GPU's")
    make = numerics.normals(torch.float32)
    layer = convext.Conv2d(8, 16, 3, padding=1, padding_mode="reflect").to(DEVICE)
    x = make(2, 8, 12, 12).to(DEVICE).requires_grad_()

    def step() -> list[torch.Tensor]:
        output = F.avg_pool2d(F.max_pool2d(layer(x), 3, 2, 1), 2)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    with torch.no_grad():
        x += 1
    graph.replay()
    for replayed, plain in zip(results, step(), strict=True):
        numerics.assert_same_bits(replayed.cpu(), plain.cpu(), "replay")


def test_a_side_stream_is_used() -> None:
    """A kernel queued behind a long-running one on a side stream sees what that one wrote."""
    if DEVICE.type == "cpu":
        pytest.skip("streams are a GPU's")
    stream = torch.cuda.Stream()
    weight = torch.ones(1, 1, 1, 1, device=DEVICE)
    with torch.cuda.stream(stream):
        x = torch.zeros(1, 1, 64, 64, device=DEVICE)
        torch.cuda._sleep(50_000_000)
        x += 1
        y = F.conv2d(x, weight)
    stream.synchronize()
    numerics.assert_equal(y.cpu(), torch.ones(1, 1, 64, 64), "output")
