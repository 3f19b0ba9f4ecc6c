"""Chains of layers by bands of rows (csrc/cpu/layer_chain.h): the bits of the layers one by one, and of naive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convext
from convext import _C
from convext.inference import Activation, Chain, FusedConv
from convext.nn import MaxPool2d
from tests import numerics

RELU6 = Activation("clamp", 0.0, 6.0)


@dataclass(frozen=True)
class Conv:
    outputs: int
    kernel: Any = 1
    stride: Any = 1
    padding: Any = 0
    groups: int = 1
    dilation: Any = 1
    activation: Activation = RELU6
    bias: bool = True
    padding_mode: str = "zeros"
    flip_kernel: bool = False


@dataclass(frozen=True)
class Pool:
    kernel: Any
    stride: Any
    padding: Any = 0
    ceil_mode: bool = False


@dataclass(frozen=True)
class Problem:
    name: str
    shape: tuple[int, int, int, int]
    layers: tuple[Conv | Pool, ...]
    residual: bool = False
    banded: bool = True

    def __str__(self) -> str:
        return self.name


def depthwise(channels: int, kernel: Any = 3, stride: Any = 1, padding: Any = 1, **options: Any) -> Conv:
    return Conv(channels, kernel, stride, padding, channels, **options)


SILU, NONE = Activation("silu"), Activation()
# Blocks of channels are made of whole vectors, two to a panel.
LANES = 16 if _C.active_isa().startswith("avx512") else 8
# Maps of more than 256 kB each, so that bands are cut, or a pointwise and a depthwise layer alone; widths around the
# seven places of a register tile, channels around a panel, rows that bands do not divide.
PROBLEMS = [
    Problem("inverted residual", (2, 24, 28, 29), (Conv(96), depthwise(96), Conv(24, activation=NONE)), residual=True),
    Problem("stride 2", (1, 16, 41, 37), (Conv(64), depthwise(64, stride=2, padding=((1, 1), (1, 0))))),
    Problem("same, stride 2", (1, 16, 42, 40), (Conv(48), depthwise(48, stride=2, padding=((0, 1), (0, 1))), Conv(8))),
    Problem("5x5", (1, 8, 40, 35), (Conv(56), depthwise(56, 5, padding=2), Conv(24))),
    Problem("5x5, stride 2", (1, 40, 33, 47), (Conv(72), depthwise(72, 5, 2, 2, bias=False), Conv(40))),
    Problem("at once", (2, 24, 14, 14), (Conv(15 * LANES), depthwise(15 * LANES))),
    Problem("at once, 5x5, stride 2", (1, 33, 27, 14), (Conv(17 * LANES), depthwise(17 * LANES, 5, 2, 2))),
    Problem("at once, then a pool", (1, 192, 7, 7), (Conv(45 * LANES), depthwise(45 * LANES), Pool(2, 2))),
    Problem("curved", (1, 24, 28, 28), (Conv(96, activation=SILU), depthwise(96, activation=SILU))),
    Problem("curved and padded", (1, 24, 31, 28), (Conv(96, activation=SILU), depthwise(96, 5, 1, 2, activation=SILU))),
    Problem("narrow", (1, 16, 200, 6), (Conv(80), depthwise(80), Conv(16))),
    Problem("seven wide", (1, 16, 180, 7), (Conv(80), depthwise(80), Conv(16))),
    Problem("nine wide", (2, 16, 150, 9), (Conv(80), depthwise(80), Conv(16))),
    Problem("no padding", (1, 17, 40, 40), (Conv(56, bias=False), depthwise(56, padding=0), Conv(33))),
    Problem("tall and dilated", (1, 16, 60, 30), (Conv(48), depthwise(48, (5, 3), (2, 1), (4, 1), dilation=(2, 1)))),
    Problem("odd channels", (1, 20, 40, 40), (Conv(45), depthwise(45), Conv(20))),
    Problem("flipped", (1, 20, 40, 40), (Conv(48), depthwise(48, flip_kernel=True), Conv(20))),
    Problem("many inputs", (1, 400, 40, 40), (Conv(48), depthwise(48), Conv(20))),
    Problem("stem", (2, 3, 75, 70), (Conv(64, 3, 2, 1), depthwise(64), Conv(64), depthwise(64, stride=2))),
    Problem("stem, pool", (1, 3, 101, 99), (Conv(64, 3, 2), Pool(3, 2, ceil_mode=True), Conv(16))),
    Problem("wide stem, pool", (1, 3, 147, 151), (Conv(64, 7, 3, 3), Pool(3, 2, 1))),
    Problem("pool first", (1, 64, 70, 70), (Pool(2, 1), Conv(32), Pool(3, 1, 1))),
    Problem("pool last, padded", (1, 32, 50, 50), (Conv(64), Pool((3, 2), (2, 2), (1, 0)))),
    Problem("grouped", (1, 32, 50, 50), (Conv(64), Conv(64, 3, 1, 1, groups=16), Conv(32))),
    Problem("strided pointwise", (1, 32, 64, 48), (Conv(64), Conv(96, 1, 2), depthwise(96))),
    Problem("windows that skip rows", (1, 16, 60, 60), (Conv(64), Conv(64, 1, 3), depthwise(64))),
    Problem("reflected columns", (1, 16, 50, 50), (Conv(64), depthwise(64, 3, 1, (0, 1), padding_mode="reflect"))),
    Problem("winograd between", (1, 32, 50, 50), (Conv(64), Conv(64, 3, 1, 1), Conv(32), depthwise(32))),
    Problem("reflected rows", (1, 16, 50, 50), (Conv(64), depthwise(64, padding_mode="reflect")), banded=False),
    Problem("small", (1, 16, 14, 14), (Conv(64), depthwise(64), Conv(16)), banded=False),
    Problem("far too padded", (1, 16, 50, 50), (Conv(64), depthwise(64, 3, 1, 4)), banded=False),
]


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def chain_of(problem: Problem, make: numerics.Maker, format: torch.memory_format = torch.channels_last) -> Chain:
    layers: list[nn.Module] = []
    channels = problem.shape[1]
    for layer in problem.layers:
        if isinstance(layer, Pool):
            layers.append(MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=layer.ceil_mode))
            continue
        weight = make(layer.outputs, channels // layer.groups, *pair(layer.kernel)).contiguous(memory_format=format)
        layers.append(
            FusedConv(
                weight,
                make(layer.outputs) if layer.bias else None,
                stride=pair(layer.stride),
                padding=layer.padding if isinstance(layer.padding, int) else tuple(layer.padding),
                dilation=pair(layer.dilation),
                groups=layer.groups,
                padding_mode=layer.padding_mode,
                flip_kernel=layer.flip_kernel,
                activation=layer.activation,
            )
        )
        channels = layer.outputs
    return Chain(layers)


def one_by_one(chain: Chain, x: Tensor, residual: Tensor | None, algorithm: str = "auto") -> Tensor:
    *others, last = chain.layers
    for layer in (*others, last):
        layer.algorithm = algorithm  # type: ignore[assignment]
    try:
        for layer in others:
            x = layer(x)
        return last(x) if residual is None else last(x, residual)  # type: ignore[no-any-return]
    finally:
        for layer in (*others, last):
            layer.algorithm = "auto"  # type: ignore[assignment]


def operands(
    problem: Problem, make: numerics.Maker, format: torch.memory_format = torch.channels_last
) -> tuple[Chain, Tensor, Tensor | None]:
    chain = chain_of(problem, make, format)
    x = make(*problem.shape).contiguous(memory_format=format)
    residual = make(*one_by_one(chain, x, None).shape).contiguous(memory_format=format) if problem.residual else None
    return chain, x, residual


def phases(call: Any) -> Sequence[str]:
    _C.start_phases()
    call()
    return [name for name, *_ in _C.stop_phases()]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_same_bits_as_one_by_one(problem: Problem, isa: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.float16):
        chain, x, residual = operands(problem, numerics.normals(dtype))
        expected = one_by_one(chain, x, residual)
        with numerics.poisoned(), numerics.guarded(x, residual) as (given, other):
            actual = chain(given, other)
        assert actual.stride() == expected.stride()
        numerics.assert_same_bits(actual, expected, f"{problem} {dtype}")


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if "curved" not in p.name], ids=str)
def test_exact_on_integers(problem: Problem) -> None:
    chain, x, residual = operands(problem, numerics.integers(torch.float32, largest=2))
    with numerics.poisoned():
        actual = chain(x, residual)
    if "winograd" in problem.name:
        actual = actual.round()
    numerics.assert_equal(actual, one_by_one(chain, x, residual, "naive"), str(problem))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_bands_run_where_they_should(problem: Problem) -> None:
    chain, x, residual = operands(problem, numerics.normals())
    assert ("bands" in phases(lambda: chain(x, residual))) == problem.banded


@pytest.mark.parametrize("problem", PROBLEMS[:6] + PROBLEMS[17:19], ids=str)
def test_bits_do_not_depend_on_threads_or_batch(problem: Problem) -> None:
    chain, x, residual = operands(problem, numerics.normals())
    with numerics.threads(1):
        alone = chain(x, residual)
        for i in range(len(x)):
            image = chain(x[i : i + 1], None if residual is None else residual[i : i + 1])
            numerics.assert_same_bits(image, alone[i : i + 1], "one image")
    for count in (2, 3, 8):
        with numerics.threads(count), numerics.poisoned():
            numerics.assert_same_bits(chain(x, residual), alone, f"{count} threads")


def test_what_is_not_plain_goes_one_by_one() -> None:
    problem = PROBLEMS[0]
    chain, x, residual = operands(problem, numerics.normals(), torch.contiguous_format)
    assert residual is not None
    expected = one_by_one(chain, x, residual)
    numerics.assert_same_bits(chain(x, residual), expected, "contiguous")
    assert "bands" not in phases(lambda: chain(x, residual))
    last = x.contiguous(memory_format=torch.channels_last)
    chain.layers[1].padding = "same"  # type: ignore[assignment]
    numerics.assert_same_bits(chain(last, residual), one_by_one(chain, last, residual), "padding by name")
    (gradient,) = torch.autograd.grad(chain(last.requires_grad_(), residual).sum(), last)
    assert gradient.shape == x.shape
    with pytest.raises(RuntimeError, match="residual has size"):
        chain(x, residual[:, :3])
    with pytest.raises(RuntimeError, match="input"):
        chain(x[:, :5], residual)


def test_workspace_limit_is_kept() -> None:
    chain, x, residual = operands(PROBLEMS[0], numerics.normals())
    convext.set_workspace_limit(1000)
    try:
        assert "bands" not in phases(lambda: chain(x, residual))
        numerics.assert_same_bits(chain(x, residual), one_by_one(chain, x, residual), "limited")
    finally:
        convext.set_workspace_limit(None)


class Inverted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.SiLU())
        self.body = nn.Sequential(
            *(nn.Conv2d(24, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU6()),
            *(nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False), nn.BatchNorm2d(96), nn.ReLU6()),
            *(nn.Conv2d(96, 24, 1, bias=False), nn.BatchNorm2d(24)),
        )
        self.pool = nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.pool(x + self.body(x))  # type: ignore[no-any-return]


def test_optimize_makes_chains_of_large_maps() -> None:
    torch.manual_seed(0)
    model, x = Inverted().eval(), torch.randn(2, 3, 32, 32)
    result = convext.optimize(model, x, memory_format="channels_last")
    chains = [layer for layer in result.modules() if isinstance(layer, Chain)]
    assert [len(chain.layers) for chain in chains] == [3]
    assert result.report.changes["chains of layers"] == 1
    assert "1 chains of layers" in str(result.report)
    with torch.inference_mode():
        assert "bands" in phases(lambda: result(x))
    other = torch.randn(1, 3, 45, 38)
    with torch.no_grad():
        torch.testing.assert_close(result(other), model(other), rtol=1e-4, atol=1e-4)
        expected = result(x)
        compiled = torch.compile(result.body, fullgraph=True, backend="aot_eager")
        laid_out = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(compiled(laid_out), expected, rtol=1e-5, atol=1e-5)
        exported = torch.export.export(result.body, (laid_out,))
        torch.testing.assert_close(exported.module()(laid_out), expected, rtol=1e-5, atol=1e-5)
    small = convext.optimize(model, x[..., :8, :8], memory_format="channels_last")
    assert not any(isinstance(layer, Chain) for layer in small.modules())


def test_a_map_that_is_its_users_residual_ends_a_chain() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(16, 64, 1), nn.Conv2d(64, 64, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return torch.relu(self.b(y) + y)

    torch.manual_seed(0)
    model, x = Shortcut().eval(), torch.randn(1, 16, 40, 40)
    result = convext.optimize(model, x, memory_format="channels_last")
    assert not any(isinstance(layer, Chain) for layer in result.modules())
    assert result.report.changes["epilogues fused"] == 1


def test_a_map_that_others_see_ends_a_chain() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(16, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return torch.cat([self.c(self.b(y)), y * math.pi], 1)

    torch.manual_seed(0)
    model, x = Seen().eval(), torch.randn(1, 16, 40, 40)
    result = convext.optimize(model, x, memory_format="channels_last")
    assert [len(layer.layers) for layer in result.modules() if isinstance(layer, Chain)] == [2]
    with torch.no_grad():
        torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-4)
