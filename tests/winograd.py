"""What Winograd's results may differ by: it adds and multiplies in another basis, so bits are not those of a plain sum.

The exact transforms are computed here a second time, with fractions, from the points in csrc/winograd.h; the bound
follows from them. One output is y = sum_e A_e (G w)_e (B^T d)_e, summed over channels. Every factor is bounded by its
row's absolute sum times the largest operand, so the rounding errors of a sum of K channels are at most

    gamma(K + rounds) kappa K max|w| max|d|,     kappa = max_i sum_e |A_ie| (|G| 1)_e (|B^T| 1)_e  (to the power of the
                                                 number of transformed axes)

with ``rounds`` the roundings of the three transforms. The gradient of the weight is the transpose in w: the sum runs
over tiles T (of all images and depths) instead of channels, and with d the largest of dy

    kappa = max_r sum_e |G_er| (|A| 1)_e (|B^T| 1)_e

Loose, but derived; the norm-wise error, which is what design
asks of the tiles, is measured in test_winograd.py.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.shapes import ConvProblem
from tests import numerics

if TYPE_CHECKING:
    from tests.calls import ConvOperands

POINTS = {
    4: (Fraction(1),),
    5: (Fraction(3, 8), Fraction(5, 4)),
    6: (Fraction(5, 8), Fraction(3, 2)),
    7: (Fraction(1, 4), Fraction(7, 8), Fraction(7, 4)),
    8: (Fraction(1, 2), Fraction(1), Fraction(3, 2)),
}
"""The positive points of n = m + r - 1, as in csrc/winograd.h; besides, their negatives, infinity, and 0 for even n."""
ROUNDS = 40
"""Roundings of the transforms: at most 2 n a pass, two passes, three transforms."""

NORM_WISE = 42.0
"""The norm-wise error that mode accurate allows, in unit roundoffs: 2.5e-6 in float32."""

Matrix = list[list[Fraction]]


def _product(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of prod (x - root), constant first."""
    result = [Fraction(1)]
    for root in roots:
        result = [
            (result[i - 1] if i > 0 else 0) - root * (result[i] if i < len(result) else 0)
            for i in range(len(result) + 1)
        ]
    return result


@cache
def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T (m x n), G (n x r) and B^T (n x n)."""
    n = m + r - 1
    points = [*([Fraction(0)] if n % 2 == 0 else []), *(sign * p for p in POINTS[n] for sign in (1, -1))]
    a_t = [[p**i for p in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    g, b_t = [], []
    for point in points:
        others = [p for p in points if p != point]
        divisor = Fraction(1)
        for p in others:
            divisor *= point - p
        g.append([point**i / divisor for i in range(r)])
        b_t.append([*_product(others), Fraction(0)])
    g.append([Fraction(int(i == r - 1)) for i in range(r)])
    b_t.append(_product(points))
    return a_t, g, b_t


@cache
def amplification(m: int, r: int) -> float:
    """kappa of one axis."""
    a_t, g, b_t = matrices(m, r)
    weights = [sum(map(abs, g_row)) * sum(map(abs, b_row)) for g_row, b_row in zip(g, b_t, strict=True)]
    return float(max(sum(abs(a) * w for a, w in zip(row, weights, strict=True)) for row in a_t))


@cache
def weight_amplification(m: int, r: int) -> float:
    """kappa of one axis, gradient of the weight."""
    a_t, g, b_t = matrices(m, r)
    operands = [sum(abs(row[e]) for row in a_t) * sum(map(abs, b_t[e])) for e in range(m + r - 1)]
    return float(max(sum(abs(g[e][tap]) * o for e, o in enumerate(operands)) for tap in range(r)))


def tiles_of(problem: ConvProblem, m: int, axes: int) -> int:
    """Of all images and output depths."""
    output = problem.output_shape[2:]
    count = problem.batch
    for i, size in enumerate(output):
        count *= -(-size // m) if i >= len(output) - axes else size
    return count


def error_bound(
    problem: ConvProblem, operands: ConvOperands, direction: str, expected: Tensor, dtype: torch.dtype
) -> Tensor:
    """How far a result may lie from ``expected`` (the value, in float64), with the largest tiles of mode accurate."""
    taps = problem.kernel[-1]
    axes = 1 if problem.spatial == 1 or problem.kernel[-2] == 1 else 2
    m, phases = 4 if taps in (2, 3) else 2, 1
    strides = problem.stride if isinstance(problem.stride, tuple) else (problem.stride,) * problem.spatial
    if strides[-1] == 2:
        m, taps, phases = 4, (taps + 1) // 2, 4 if direction == "forward" else 1
    if direction == "backward_weight":
        sizes = (4,) if taps == 2 else (2, m)
        magnitude = max(weight_amplification(size, taps) ** axes * tiles_of(problem, size, axes) for size in sizes)
        largest = float(operands.grad_output.detach().abs().max()) * float(operands.input.detach().abs().max())
        count = torch.full_like(expected, tiles_of(problem, 2, axes) + ROUNDS)
        return numerics.error_bound(expected, torch.full_like(expected, magnitude * largest), count, dtype)
    kappa = amplification(m, taps) ** axes
    if m == 2 and axes == 2:  # 2x4 outputs
        kappa = max(kappa, amplification(2, taps) * amplification(4, taps))
    source = operands.input if direction == "forward" else operands.grad_output
    channels = problem.channels[0 if direction == "forward" else 1] // problem.groups
    terms = phases * channels * (problem.kernel[0] if problem.spatial == 3 else 1)
    magnitude = kappa * terms * float(operands.weight.detach().abs().max()) * float(source.detach().abs().max())
    if direction == "forward" and operands.bias is not None:
        magnitude += float(operands.bias.detach().abs().max())
    count = torch.full_like(expected, terms + ROUNDS)
    return numerics.error_bound(expected, torch.full_like(expected, magnitude), count, dtype)


def assert_nearest(actual: Tensor, expected: Tensor, what: str) -> None:
    """The result lies so near an integer that rounding gives the exact one; ``expected`` is exact, rounded to dtype."""
    if actual.dtype in (torch.float32, torch.float64):
        numerics.assert_equal(actual.round(), expected, what)
        near = (actual - expected).abs().max() if actual.numel() else torch.zeros(())
        assert near <= (0.02 if actual.dtype == torch.float32 else 1e-9), f"{what}: off by {near}"
        return
    half_ulp = torch.finfo(actual.dtype).eps * expected.double().abs()  # a tie may go either way
    numerics.assert_within(actual, expected, half_ulp + 0.01, what)
