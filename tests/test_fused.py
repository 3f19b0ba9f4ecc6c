"""A convolution's epilogue (residual, activation) and the scale per channel: the same as the operations one by one.

Sums, products, minima and maxima round the same wherever they are done, so those epilogues must give the same bits as
torch's operations on the convolution's output; curved activations stay within a bound of their value in float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import convext
from benchmarks.shapes import ConvProblem
from convext import _C, functional, ops
from tests import calls, cases, numerics

PIECEWISE = [("none", 0.0, 0.0), ("clamp", 0.0, math.inf), ("clamp", -1.0, 6.0), ("leaky_relu", 0.25, 0.0)]
CURVED = ["sigmoid", "silu", "tanh", "gelu", "gelu_tanh", "hardsigmoid", "hardswish"]


def residual_of(output: Tensor) -> Tensor:
    """Other numbers, in the shape and layout of the output."""
    values = torch.arange(output.numel(), dtype=torch.float64) % 7 - 3
    return torch.empty_like(output).copy_(values.reshape(output.shape))


def run_fused(
    problem: ConvProblem, operands: calls.ConvOperands, residual: Tensor | None, epilogue: Any, algorithm: str
) -> Tensor:
    x, w, bias = operands.input, operands.weight, operands.bias
    with numerics.poisoned(), numerics.guarded(x, w, bias, residual) as (x, w, bias, residual):
        return ops.conv_fused(x, w, bias, residual, *problem.options, *epilogue, algorithm)


def expected_of(plain: Tensor, residual: Tensor | None, epilogue: Any) -> Tensor:
    activation, a, b, last = epilogue
    before = plain if residual is None or last else plain + residual
    after = functional.activate(before, activation, a, b)
    return after + residual if residual is not None and last else after


@pytest.mark.parametrize("problem", cases.CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("algorithm", calls.CONV_ALGORITHMS)
def test_piecewise_linear_epilogues_keep_bits(problem: ConvProblem, algorithm: str) -> None:
    """In float32, and in float16 where it is contiguous: double and bfloat16 take the same ways."""
    kinds = [(torch.float32, last) for last in calls.layouts(problem.spatial)] + [(torch.float16, False)]
    for dtype, channels_last in kinds:
        operands = calls.conv_operands(problem, numerics.integers(dtype), channels_last)
        calls.skip_if_refused(calls.explain_conv(problem, operands), algorithm)
        plain = calls.run_conv(problem, "forward", operands, algorithm)
        residual = residual_of(plain)
        # In turn: each activation with and without the residual would repeat the same stores.
        seed = sum(map(ord, str(problem)))
        for i, (with_residual, last) in enumerate(((False, False), (True, False), (True, True))):
            activation, a, b = PIECEWISE[(seed + i) % len(PIECEWISE)]
            given = residual if with_residual else None
            actual = run_fused(problem, operands, given, (activation, a, b, last), algorithm)
            expected = expected_of(plain, given, (activation, a, b, last))
            what = f"{activation}, residual={with_residual}, last={last}, channels_last={channels_last}"
            assert actual.stride() == plain.stride()
            numerics.assert_equal(actual, expected, what)


@pytest.mark.parametrize("problem", cases.CONV_CORE, ids=str)
@calls.variants(calls.OTHER_CONV_ALGORITHMS)
def test_curved_epilogues_are_near(problem: ConvProblem, algorithm: str, isa: str) -> None:
    for dtype in (torch.float32, torch.float64):
        for channels_last in calls.layouts(problem.spatial):
            operands = calls.conv_operands(problem, numerics.normals(dtype), channels_last)
            calls.skip_if_refused(calls.explain_conv(problem, operands), algorithm)
            plain = calls.run_conv(problem, "forward", operands, algorithm)
            residual = residual_of(plain)
            for i, activation in enumerate(CURVED):
                epilogue = (activation, 0.0, 0.0, i % 2 == 1)
                actual = run_fused(problem, operands, residual, epilogue, algorithm)
                exact = expected_of(plain.double(), residual.double(), epilogue)
                bound = activation_bound(plain, residual, epilogue)
                numerics.assert_within(actual, exact, bound, f"{activation} {dtype} channels_last={channels_last}")


def activation_bound(plain: Tensor, residual: Tensor, epilogue: Any) -> Tensor:
    """Of a curved epilogue's error. With e half a unit in the last place: the sum before it moves its argument by e
    |v|, and its slope is at most 1.13; exp is good to 3 e, each of the up to six operations behind it adds e; erf is
    good to 1.5e-7 in float32 (csrc/cpu/activations.inl)."""
    eps = torch.finfo(plain.dtype).eps
    v, r = plain.double(), residual.double()
    size = v.abs() + r.abs() + 1
    erf = 1.5e-7 if plain.dtype == torch.float32 and epilogue[0] == "gelu" else 0.0
    return (1.13 + 9) * eps / 2 * size + erf * size


@pytest.mark.parametrize("activation", CURVED)
def test_activations_over_their_range(activation: str, isa: str) -> None:
    """Through a convolution with the weight 1, every float of a fine grid, infinities and NaN."""
    grid = torch.cat([torch.linspace(-120, 120, 40001), torch.logspace(-30, 1, 999), -torch.logspace(-30, 1, 999)])
    x = grid.reshape(1, 1, -1)
    actual = functional.conv_fused(x, torch.ones(1, 1, 1), activation=activation)
    exact = functional.activate(x.double(), activation)
    bound = activation_bound(x, torch.zeros_like(x), (activation, 0, 0, False))
    numerics.assert_within(actual, exact, bound, activation)
    special = torch.tensor([math.nan, math.inf, -math.inf]).reshape(1, 1, -1)
    got = functional.conv_fused(special, torch.ones(1, 1, 1), activation=activation).flatten()
    assert got[0].isnan()
    if activation in ("sigmoid", "tanh", "hardsigmoid"):
        limits = functional.activate(special, activation).flatten()[1:]
        assert (got[1:] - limits).abs().max() <= 2e-38, "sigmoid ends with its least normal number"
    else:
        assert got[1] == math.inf


@pytest.mark.parametrize("dtype", numerics.FLOATS, ids=numerics.name_of)
@pytest.mark.parametrize("parts", [(5,), (3, 16, 1)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_channel_scale(dtype: torch.dtype, parts: tuple[int, ...], channels_last: bool, isa: str) -> None:
    channels = sum(parts)
    format = torch.channels_last if channels_last else torch.contiguous_format
    integers = numerics.integers(dtype)
    xs = [integers(2, c, 7, 9).contiguous(memory_format=format) for c in parts]
    scale, shift = integers(channels), integers(channels)
    for activation, a, b in PIECEWISE:
        actual = functional.channel_scale(xs, scale, shift, activation, a, b)
        line = torch.cat(xs, 1) * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
        numerics.assert_equal(actual, functional.activate(line, activation, a, b), activation)
        assert actual.is_contiguous(memory_format=format)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    for channels_last in (False, True):
        format = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.randn(2, 24, 33, 35).contiguous(memory_format=format)
        for groups, kernel in ((1, 3), (24, 3), (1, 1)):
            w = torch.randn(24, 24 // groups, kernel, kernel)
            given = {"groups": groups, "padding": kernel // 2, "activation": "silu", "residual": x}
            alone = functional.conv_fused(x, w, **given)
            try:
                torch.set_num_threads(threads)
                numerics.assert_same_bits(functional.conv_fused(x, w, **given), alone, f"{groups} {kernel}")
            finally:
                torch.set_num_threads(before)


def test_gradients_go_the_long_way() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    r = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    for activation in CURVED[:5]:

        def fused(*args: Tensor, activation: str = activation) -> Tensor:
            return functional.conv_fused(args[0], args[1], padding=1, residual=args[2], activation=activation)

        assert torch.autograd.gradcheck(fused, (x, w, r))
    s = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s: functional.channel_scale([x], s, s, "silu"), (x, s))
    with pytest.raises(NotImplementedError, match="conv_fused: has no gradient"):
        ops.conv_fused(x, w, None, None, [1, 1], [0] * 4, [1, 1], 1, "zeros", False, "none", 0.0, 0.0, False, "auto")


def test_errors_say_what_is_wrong() -> None:
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3)
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'softmax'"):
        functional.conv_fused(x, w, activation="softmax")
    with pytest.raises(RuntimeError, match=r"residual has size \[1, 4, 6, 6\] \(expected \[1, 4, 4, 4\]"):
        functional.conv_fused(x, w, residual=x)
    with pytest.raises(RuntimeError, match="should be the same"):
        functional.conv_fused(x, w, padding=1, residual=x.double())
    with pytest.raises(RuntimeError, match=r"scale and shift must be Float of size \[4\]"):
        functional.channel_scale([x], torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="at least one input"):
        functional.channel_scale([], torch.ones(3), torch.ones(3))


def test_names_are_the_kernels() -> None:
    assert list(convext.functional.fused._FUNCTIONS) == _C.activations()
