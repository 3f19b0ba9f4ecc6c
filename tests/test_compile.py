"""torch.compile without graph breaks, make_fx and torch.export: the bits of eager mode, with changing sizes too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

import convext
import convext.functional as C
from tests import numerics, peer

LAYERS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    **{f"Conv{d}d": ((4, 6, 3), {"padding": "same", "stride": 2, "groups": 2}) for d in (1, 2, 3)},
    **{f"ConvTranspose{d}d": ((4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}) for d in (1, 2, 3)},
    **{f"MaxPool{d}d": ((3,), {"stride": 2, "padding": 1}) for d in (1, 2, 3)},
    **{f"AvgPool{d}d": ((3,), {"stride": 2, "padding": "same", "ceil_mode": True}) for d in (1, 2, 3)},
}

each_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graph of an earlier test is reused, none is left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer_of(name: str) -> torch.nn.Module:
    args, kwargs = LAYERS[name]
    return getattr(convext, name)(*args, **kwargs)


def assert_same_run(actual: Callable[..., Tensor], expected: Callable[..., Tensor], operands: list[Tensor]) -> None:
    """Output and gradients, bit for bit; strides too. A graph expects its output's layout of the incoming gradient."""
    output = expected(*operands).detach()
    grad_output = torch.empty_like(output).copy_(numerics.normals(seed=3)(*output.shape))
    for a, e in zip(
        peer.results(actual, operands, grad_output), peer.results(expected, operands, grad_output), strict=True
    ):
        numerics.assert_same_bits(a, e)
        assert a.stride() == e.stride()


@each_layer
def test_a_compiled_layer_is_the_eager_one(name: str) -> None:
    """One graph, forward and backward, for contiguous and channels_last inputs; without gradients as well."""
    layer = layer_of(name)
    spatial = peer.spatial_of(name)
    function = peer.as_function(layer)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    make = numerics.normals()
    operands = peer.layer_operands(layer, make(2, 4, *peer.small_size(spatial)), make)
    assert_same_run(compiled, function, operands)
    with torch.no_grad():
        numerics.assert_same_bits(compiled(*operands), function(*operands))
    if spatial > 1:
        memory_format = torch.channels_last if spatial == 2 else torch.channels_last_3d
        operands[0] = operands[0].contiguous(memory_format=memory_format)
        assert_same_run(compiled, function, operands)


@each_layer
def test_changing_sizes_reuse_one_graph(name: str) -> None:
    """dynamic=True: new batch and map sizes neither recompile nor change a bit, "same" with a stride included."""
    layer = layer_of(name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    make = numerics.normals()
    for batch, extra in ((2, 0), (3, 2), (5, 7)):
        sizes = [n + extra + i for i, n in enumerate(peer.small_size(peer.spatial_of(name)))]
        x = make(batch, 4, *sizes).requires_grad_()
        leaves = [x, *layer.parameters()]
        actual, expected = compiled(x), layer(x)
        numerics.assert_same_bits(actual.detach(), expected.detach())
        grad_output = make(*expected.shape)
        for a, e in zip(*(torch.autograd.grad(y, leaves, grad_output) for y in (actual, expected)), strict=True):
            numerics.assert_same_bits(a, e)
    assert counter.frame_count == 1


def test_max_pooling_with_indices() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return C.max_pool2d(x, 3, 2, 1, return_indices=True)

    x = numerics.integers()(2, 3, 8, 9)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(x), function(x), strict=True):
        numerics.assert_same_bits(actual, expected)


class Net(torch.nn.Module):
    """Some of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            convext.Conv2d(2, 4, 3, padding="same", stride=2, padding_mode="symmetric"),
            torch.nn.ReLU(),
            convext.MaxPool2d(3, 1, 1),
            convext.Conv2d(4, 4, 3, groups=4, padding=((1, 0), (2, 1)), flip_kernel=True),
            convext.AvgPool2d(2, 1, dilation=2),
            convext.ConvTranspose2d(4, 2, 2, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_compiled_training_step() -> None:
    """Parameters after two steps are those of eager mode."""
    nets = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = Net()
        run = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for seed in (1, 2):
            optimizer.zero_grad()
            run(numerics.normals(seed=seed)(2, 2, 11, 10)).square().mean().backward()
            optimizer.step()
        nets.append(net)
    for (name, expected), (_, actual) in zip(*(net.named_parameters() for net in nets), strict=True):
        numerics.assert_same_bits(actual.detach(), expected.detach(), name)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor(dynamic: bool) -> None:
    """Generated code around the operators, training and inference. (It may fuse what lies between them: on integers all
    is exact.)"""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return C.max_pool2d(torch.relu(C.conv2d(x, w, padding="same", stride=2) * 2 + 1), 2)

    make = numerics.integers()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for batch, height in ((2, 11), (3, 14)) if dynamic else ((2, 11),):
        operands = [make(batch, 2, height, 10), make(4, 2, 3, 3)]
        grad_output = make(*function(*operands).shape)
        for actual, expected in zip(
            peer.results(compiled, operands, grad_output), peer.results(function, operands, grad_output), strict=True
        ):
            numerics.assert_equal(actual, expected)
        with torch.no_grad():
            numerics.assert_equal(compiled(*operands), function(*operands))


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_inductor_keeps_memory_formats(last: bool) -> None:
    """The operators take what lies in any way, so that code generated around them makes no copy: what they give lies as
    in eager mode, gradients too, and the gradient that those of weight and bias share is made once."""
    format = torch.channels_last if last else torch.contiguous_format
    make = numerics.integers()
    operands = [make(2, 4, 9, 8), make(6, 4, 3, 3), make(6)]
    operands = [t.contiguous(memory_format=format) if t.dim() == 4 else t for t in operands]

    def function(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return torch.relu(C.conv2d(x, w, bias, stride=2))

    def results(run: Callable[..., Tensor]) -> list[Tensor]:  # a first layer: none of its input
        parameters = [p.requires_grad_() for p in operands[1:]]
        y = run(operands[0], *parameters)
        return [y.detach(), *torch.autograd.grad(y, parameters, torch.ones_like(y))]

    compiled = torch.compile(function, fullgraph=True)
    with torch._inductor.config.patch(force_disable_caches=True):
        actual, code = run_and_get_code(lambda: results(compiled))
    for a, e in zip(actual, results(function), strict=True):
        assert a.stride() == e.stride()
        numerics.assert_equal(a, e)
    given = {what: re.findall(rf"conv_backward_{what}.default\((\w+)", "".join(code)) for what in ("weight", "bias")}
    assert given["bias"]
    assert set(given["bias"]) <= set(given["weight"]), f"made for each: {given}"


def test_autocast_inside_a_graph() -> None:
    layer = convext.Conv2d(2, 3, 3)

    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    x = numerics.normals()(1, 2, 6, 6)
    actual = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    assert actual.dtype == torch.bfloat16
    numerics.assert_same_bits(actual.detach(), function(x).detach())


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(tracing_mode: str) -> None:
    """A traced gradient consists of the operators, and runs without convext's Python."""

    def function(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        y = C.max_pool2d(C.conv2d(x, w, padding="same", stride=2), 2)
        return torch.autograd.grad(y.square().sum(), (x, w))

    make = numerics.normals()
    x, w = make(2, 2, 9, 8).requires_grad_(), make(3, 2, 3, 3).requires_grad_()
    graph = make_fx(function, tracing_mode=tracing_mode)(x, w)
    called = {str(node.target) for node in graph.graph.nodes if "convext" in str(node.target)}
    assert called == {
        f"convext.{name}.default"
        for name in ("conv_forward", "conv_backward_input", "conv_backward_weight", "max_pool", "max_pool_backward")
    }
    for actual, expected in zip(graph(x, w), function(x, w), strict=True):
        numerics.assert_same_bits(actual.detach(), expected)


def test_export() -> None:
    """The exported program holds the operators, takes other sizes, and survives saving."""
    net = Net().eval()
    make = numerics.normals()
    batch, height = torch.export.Dim("batch", min=2), torch.export.Dim("height", min=16)
    program = torch.export.export(net, (make(2, 2, 21, 10),), dynamic_shapes={"x": {0: batch, 2: height}})
    assert "convext.conv_forward" in program.graph_module.code
    for shape in ((2, 2, 17, 10), (5, 2, 24, 10)):
        x = make(*shape)
        numerics.assert_same_bits(program.module()(x).detach(), net(x).detach())
