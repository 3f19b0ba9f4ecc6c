"""What each algorithm makes of a convolution's multiplications."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from convext import _C
from convext.analysis.visit import Operation
from convext.choice import Explanation

_TILE_LANES = 8
_WEIGHT_CYCLES = 0.8
_SHORT_SUM = 64


@dataclass(frozen=True)
class AlgorithmCost:
    """What one algorithm does for a convolution."""

    name: str
    refusal: str | None
    """Why it cannot do the call; None where it can."""
    multiplications: int | None
    """Of inputs (or transformed inputs) by weights; None where it cannot do the call. Winograd's transforms, which are
    sums of inputs and outputs by small constants, are not among them."""
    workspace_bytes: int
    """What the library's implementation takes besides the output, for the present number of threads."""
    column_bytes: int | None = None
    """im2col: of the whole matrix of columns, which the library unfolds by panels instead."""
    tile: str | None = None
    """winograd: F(outputs, taps), as in Lavin and Gray 2015."""


def winograd_tile(
    kernel: Sequence[int], output: Sequence[int], mode: str = "accurate", *, stride: int = 1, terms: int = 1
) -> tuple[int, int] | None:
    """The tile (outputs along h, along w) that winograd takes for a kernel (r, s) or (s,) and an output of those
    places, with the depth in front in three dimensions; None for a kernel it has no tiles for.

    The rule of csrc/cpu/conv_winograd.cpp: of 2x2 and 4x4 outputs for 3x3 kernels, of 2x2 and 2x4 for 5x5 ones (4x4 in
    mode ``"fast"``, 2x2 where more than 64 ``terms``, channels times taps along the depth, are summed up) the one that
    takes fewer cycles, where reading a transformed weight counts as at least 0.8 cycles for every 16 multiply-adds, and
    tiles come in eights. 2x2 kernels take 4x4; so do 3x3 to 8x8 ones with a stride of 2, but those of 7x7 and 8x8 2x2
    where they sum up more than 64 terms, for which the places of each phase count as channels.
    """
    r, s = (1, kernel[0]) if len(kernel) == 1 else (kernel[-2], kernel[-1])
    if stride == 2:
        if r != s or not 3 <= r <= 8:
            return None
        return (2, 2) if r > 6 and terms > _SHORT_SUM else (4, 4)
    if (r, s) == (2, 2):
        return 4, 4
    if s not in (3, 5) or r not in (1, s):
        return None
    if r == 1:
        return (1, 2) if s == 5 else (1, 4)
    if s == 5 and mode == "fast":
        return 4, 4
    depth = output[0] if len(output) == 3 else 1

    def cycles(tile: tuple[int, int]) -> float:
        tiles = math.ceil(output[-2] / tile[0]) * math.ceil(output[-1] / tile[1])
        rounded = math.ceil(tiles / _TILE_LANES) * _TILE_LANES * depth
        return (tile[0] + r - 1) * (tile[1] + s - 1) * max(rounded / 16, _WEIGHT_CYCLES)

    if s == 5:
        return (2, 4) if terms <= _SHORT_SUM and cycles((2, 4)) < cycles((2, 2)) else (2, 2)
    return (2, 2) if cycles((2, 2)) < cycles((4, 4)) else (4, 4)


@dataclass(frozen=True)
class ConvSizes:
    """A convolution, transposed or not."""

    batch: int
    pairs: int
    """Input channels per group times output channels."""
    kernel: tuple[int, ...]
    places: tuple[int, ...]
    """At which the kernel is laid down: the output's, or the input's of a transposed convolution."""
    output: tuple[int, ...]
    columns: int
    """Rows of im2col's matrix: channels times taps."""
    stride: tuple[int, ...]
    inputs: int
    """Channels that are summed up."""
    transposed: bool

    @property
    def multiply_adds(self) -> int:
        return self.batch * self.pairs * math.prod(self.kernel) * math.prod(self.places)

    def winograd(self, mode: str) -> tuple[int, str] | None:
        strided = self.stride[-1] == 2
        terms = self.inputs * math.prod(self.kernel[:-2]) * (4 if strided and not self.transposed else 1)
        tile = winograd_tile(self.kernel, self.output, mode, stride=self.stride[-1], terms=terms)
        if tile is None:
            return None
        taps = (1, *self.kernel)[-2:]
        places = tuple(math.ceil(n / (1 + (strided and self.transposed))) for n in (1, *self.output)[-2:])
        depth = math.prod((*self.kernel[:-2], *self.output[:-2]))
        tiles = math.prod(math.ceil(n / m) for n, m in zip(places, tile, strict=True))
        short = strided and taps[-1] % 2  # along an axis: even phases of the places, odd ones with a tap less
        if strided:
            taps = tuple((r + 1) // 2 for r in taps)
        points = math.prod((m + r - 1) * (1 + strided) - short for m, r in zip(tile, taps, strict=True))
        named = [f"{m}, {r}" for m, r in zip(tile, taps, strict=True)]
        name = f"F({named[1]})" if taps[0] == 1 else f"F({tile[0]}x{tile[1]}, {taps[0]}x{taps[1]})"
        name += " of 4 phases" if strided else ""
        return self.batch * self.pairs * depth * tiles * points, name


def conv_sizes(operation: Operation, spatial: int) -> ConvSizes:
    weight: Tensor = operation.argument(1, "weight")
    input: Tensor = operation.argument(0, "input")
    batch = input.shape[0] if input.dim() == spatial + 2 else 1
    kernel, places = tuple(weight.shape[2:]), tuple(operation.result.shape[-spatial:])
    transposed = "transpose" in operation.name
    summed = tuple(input.shape[-spatial:]) if transposed else places
    columns = math.prod(weight.shape[1:])
    groups, stride = operation.argument(6, "groups", 1), operation.argument(3, "stride", 1)
    inputs = weight.shape[0] // groups if transposed else weight.shape[1]
    strides = (stride,) * spatial if isinstance(stride, int) else tuple(stride)
    return ConvSizes(
        batch, weight.shape[0] * weight.shape[1], kernel, summed, places, columns * groups, strides, inputs, transposed
    )


def algorithm_costs(conv: ConvSizes, explanation: Explanation, asked: str, itemsize: int) -> tuple[AlgorithmCost, ...]:
    _name, mode = _C.parse_algorithm(asked)
    costs = []
    for verdict in explanation.verdicts:
        cost = AlgorithmCost(verdict.name, verdict.refusal, None, verdict.workspace_bytes)
        if verdict.refusal is None:
            cost = replace(cost, multiplications=conv.multiply_adds)
            if verdict.name == "im2col":
                cost = replace(cost, column_bytes=conv.batch * conv.columns * math.prod(conv.places) * itemsize)
            found = conv.winograd(mode) if verdict.name == "winograd" else None
            if found is not None:
                cost = replace(cost, multiplications=found[0], tile=found[1])
        costs.append(cost)
    return tuple(costs)
