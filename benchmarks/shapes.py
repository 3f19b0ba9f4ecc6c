"""Problems as data: one line each, shared by the tests and the benchmark.

A problem says everything about a call but its numbers. ``str(problem)`` is its test id and benchmark row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import convext.functional
from convext.padding import Padding

Maker = Callable[..., Tensor]


def _tuple(value: Any, spatial: int) -> tuple[int, ...]:
    return (value,) * spatial if isinstance(value, int) else tuple(value)


def laid_out(tensor: Tensor, channels_last: bool) -> Tensor:
    if not channels_last or tensor.dim() == 3:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)


@dataclass(frozen=True)
class ConvProblem:
    """A convolution: ``size`` and ``kernel`` are spatial (their length is the number of dimensions)."""

    name: str
    channels: tuple[int, int]
    """(input, output) channels, over all groups."""
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    batch: int = 1
    stride: int | tuple[int, ...] = 1
    padding: Padding = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    padding_mode: str = "zeros"
    flip_kernel: bool = False
    bias: bool = False
    dtype: torch.dtype = torch.float32
    """What the benchmark computes in; tests go through all of them."""
    transposed: bool = False
    """For the benchmark: the layer is the transposed convolution of which this is the mirror; its forward pass is
    this convolution's gradient of the input, and the other way round."""
    tags: frozenset[str] = field(default=frozenset(), compare=False)

    def __str__(self) -> str:
        return self.name

    @property
    def spatial(self) -> int:
        return len(self.size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.batch, self.channels[0], *self.size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.channels[1], self.channels[0] // self.groups, *self.kernel

    @property
    def options(self) -> tuple[Any, ...]:
        """For the operators: stride, padding (before, after per dimension), dilation, groups, padding_mode, flip."""
        *options, _algorithm = convext.functional.conv_options(
            f"conv{self.spatial}d",
            self.size,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.flip_kernel,
            "auto",
        )
        return tuple(options)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return tuple(convext.ops.conv_output_shape(self.input_shape, self.weight_shape, *self.options[:4]))

    @property
    def multiply_adds(self) -> int:
        """Of one direction, padding counted as if it were input."""
        result = self.channels[0] // self.groups
        for n in (*self.output_shape, *self.kernel):
            result *= n
        return result

    def bytes_moved(self, element_size: int = 4) -> int:
        """Input, weight and output, each once."""
        total = 0
        for shape in (self.input_shape, self.weight_shape, self.output_shape):
            elements = 1
            for n in shape:
                elements *= n
            total += elements
        return total * element_size

    def operands(self, make: Maker, channels_last: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """(input, weight, bias) from ``make(*shape)``."""
        x, w = make(*self.input_shape), make(*self.weight_shape)
        return laid_out(x, channels_last), w, make(self.channels[1]) if self.bias else None

    def with_(self, **changes: Any) -> ConvProblem:
        return replace(self, **changes)


@dataclass(frozen=True)
class PoolProblem:
    """A pooling. ``average`` chooses the kind; the last three arguments are the average's. Of an adaptive one ``kernel``
    is the output size, and there is nothing more to say."""

    name: str
    average: bool
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    batch: int = 1
    stride: int | tuple[int, ...] | None = None
    padding: Padding = 0
    dilation: int | tuple[int, ...] = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None
    adaptive: bool = False
    tags: frozenset[str] = field(default=frozenset(), compare=False)

    def __str__(self) -> str:
        return self.name

    @property
    def spatial(self) -> int:
        return len(self.size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.batch, self.channels, *self.size

    @property
    def taps(self) -> int:
        """Places of a window; of adaptive ones what convext calls so, up to two more along a dimension."""
        if not self.adaptive:
            return math.prod(self.kernel)
        return math.prod(
            n // k + (0 if n % k == 0 else 1 if k % (n % k) == 0 else 2)
            for n, k in zip(self.size, self.kernel, strict=True)
        )

    @property
    def window(self) -> tuple[Any, ...]:
        """kernel_size, stride, padding (before, after per dimension), dilation, ceil_mode; for the operators."""
        if self.adaptive:
            return convext.functional.adaptive_window(self.name, self.size, self.kernel)
        window = convext.functional.pool_window(
            self.name, self.size, self.kernel, self.stride, self.padding, self.dilation
        )
        return *window, self.ceil_mode

    @property
    def output_shape(self) -> tuple[int, ...]:
        op = "avg_pool" if self.average else "max_pool"
        return tuple(convext.ops.pool_output_shape(op, self.input_shape, *self.window))

    def bytes_moved(self, element_size: int = 4) -> int:
        total = 0
        for shape in (self.input_shape, self.output_shape):
            elements = 1
            for n in shape:
                elements *= n
            total += elements
        return total * element_size

    def operand(self, make: Maker, channels_last: bool = False) -> Tensor:
        return laid_out(make(*self.input_shape), channels_last)

    def with_(self, **changes: Any) -> PoolProblem:
        return replace(self, **changes)


def _square(
    name: str, c: int, k: int, size: int, kernel: int, stride: int = 1, padding: int | None = None, **rest: Any
) -> ConvProblem:
    """A square 2-D layer; padding defaults to half the kernel."""
    half = kernel // 2 if padding is None else padding
    return ConvProblem(name, (c, k), (size, size), (kernel, kernel), stride=stride, padding=half, **rest)


def _tags(*tags: str) -> frozenset[str]:
    return frozenset(tags)


# Layers of real networks, and the calls users complain about. "quick" ones run in the benchmark's quick mode.
CONVOLUTIONS = (
    _square("7x7 s2 3-64 224 (ResNet stem)", 3, 64, 224, 7, 2),
    _square("3x3 64-64 56", 64, 64, 56, 3, tags=_tags("quick")),
    _square("3x3 128-128 28", 128, 128, 28, 3),
    _square("3x3 256-256 14", 256, 256, 14, 3, tags=_tags("quick")),
    _square("3x3 512-512 7", 512, 512, 7, 3),
    _square("1x1 64-256 56", 64, 256, 56, 1, tags=_tags("quick")),
    _square("1x1 256-64 56", 256, 64, 56, 1),
    _square("1x1 1024-256 14", 1024, 256, 14, 1),
    _square("1x1 512-2048 7", 512, 2048, 7, 1),
    _square("3x3 s2 128-128 56", 128, 128, 56, 3, 2),
    _square("3x3 64-64 224 (VGG)", 64, 64, 224, 3, tags=_tags("large")),
    _square("3x3 256-256 56 (VGG)", 256, 256, 56, 3, tags=_tags("large")),
    _square("3x3 512-512 14 (VGG)", 512, 512, 14, 3),
    _square("depthwise 3x3 144 56", 144, 144, 56, 3, groups=144, tags=_tags("quick")),
    _square("depthwise 3x3 s2 144 56", 144, 144, 56, 3, 2, groups=144),
    _square("depthwise 3x3 960 7", 960, 960, 7, 3, groups=960),
    _square("depthwise 7x7 96 56 (ConvNeXt)", 96, 96, 56, 7, groups=96),
    _square("depthwise 31x31 128 56 (RepLKNet)", 128, 128, 56, 31, groups=128, tags=_tags("large")),
    _square("groups 32, 3x3 128 56 (ResNeXt)", 128, 128, 56, 3, groups=32),
    _square("5x5 1-6 28 batch 8 (LeNet)", 1, 6, 28, 5, batch=8, tags=_tags("quick")),
    _square("5x5 64-64 28", 64, 64, 28, 5),
    _square("5x5 32-96 14", 32, 96, 14, 5),
    _square("3x3 1-1 512 (one filter)", 1, 1, 512, 3),
    _square("3x3 1-32 28 batch 64 (MNIST)", 1, 32, 28, 3, batch=64),
    _square("3x3 3-64 256 (U-Net in)", 3, 64, 256, 3),
    _square("3x3 64-3 256 (image out)", 64, 3, 256, 3),
    _square("15x15 1-16 256 (filter bank)", 1, 16, 256, 15),
    ConvProblem("causal depthwise conv1d k4 1024 x 2048", (1024, 1024), (2048,), (4,), padding=((3, 0),), groups=1024),
    ConvProblem("3x3x3 32-64 16^3", (32, 64), (16, 16, 16), (3, 3, 3), padding=1),
    ConvProblem("conv3d 3x3x3 1-32 64^3", (1, 32), (64, 64, 64), (3, 3, 3), padding=1, tags=_tags("large")),
    _square("3x3 64-64 56 float16", 64, 64, 56, 3, dtype=torch.float16),
    _square("3x3 64-64 56 bfloat16", 64, 64, 56, 3, dtype=torch.bfloat16),
    _square("3x3 64-64 56 float64", 64, 64, 56, 3, dtype=torch.float64),
    _square("transposed 2x2 s2 256-128 28", 128, 256, 56, 2, 2, padding=0, transposed=True),
    _square("transposed 4x4 s2 256-128 28", 128, 256, 56, 4, 2, padding=1, transposed=True),
)

POOLS = (
    PoolProblem("max 3 s2 p1, 64 112", False, 64, (112, 112), (3, 3), stride=2, padding=1, tags=_tags("quick")),
    PoolProblem("max 2 s2, 64 224", False, 64, (224, 224), (2, 2)),
    PoolProblem("max 3 s1 p1, 256 28", False, 256, (28, 28), (3, 3), stride=1, padding=1),
    PoolProblem("max 2 s2, batch 8 64 112", False, 64, (112, 112), (2, 2), batch=8),
    PoolProblem("max 5 s1 p2, 256 20 (SPPF)", False, 256, (20, 20), (5, 5), stride=1, padding=2),
    PoolProblem("max 13 s1 p6, 256 20 (SPP)", False, 256, (20, 20), (13, 13), stride=1, padding=6),
    PoolProblem("max 3d 2, 32 64^3", False, 32, (64, 64, 64), (2, 2, 2)),
    PoolProblem("avg 3 s1 p1, 288 35", True, 288, (35, 35), (3, 3), stride=1, padding=1, tags=_tags("quick")),
    PoolProblem("avg 2 s2, 64 224", True, 64, (224, 224), (2, 2)),
)
