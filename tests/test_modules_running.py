"""How layers run: autocast, grad modes, several threads, tensor subclasses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convext
import convext.functional as C
from tests import numerics, peer

LAYERS = peer.CONVOLUTIONS + peer.TRANSPOSED + peer.MAX_POOLS + peer.AVERAGE_POOLS
each_layer = pytest.mark.parametrize("name", LAYERS)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    return peer.pair(name, *((2, 4, 3) if "Conv" in name else (3, 2)))


def input_for(name: str) -> Tensor:
    return numerics.normals()(2, 2, *peer.small_size(peer.spatial_of(name)))


# Autocast ------------------------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16, torch.float64], ids=numerics.name_of)
def test_dtypes_under_autocast_are_torchs(name: str, of: torch.dtype) -> None:
    """Output and every gradient; torch's own layer under the same autocast says what they should be."""
    found = []
    for layer in pair(name):
        layer = layer.double() if of == torch.float64 else layer
        x = input_for(name).to(of).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            try:
                output = layer(x)
            except RuntimeError as error:
                found.append(type(error))
                continue
        output.float().sum().backward()
        assert x.grad is not None
        found.append((output.dtype, x.grad.dtype, *(p.grad.dtype for p in layer.parameters())))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", peer.CONVOLUTIONS + peer.TRANSPOSED)
def test_values_under_autocast(name: str) -> None:
    """Those of the operands rounded to bfloat16, gradients included."""
    ours, theirs = pair(name)
    make = numerics.normals(torch.bfloat16)
    x = make(2, 2, *peer.small_size(peer.spatial_of(name)))
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(make(*p.shape))  # numbers of bfloat16, held in float32
    operands = [x, *(p.detach().bfloat16() for p in ours.parameters())]
    leaf = x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(leaf)
    grad_output = make(*output.shape)
    output.backward(grad_output)
    stored = 2 if "Transpose" in name else 1
    true, bounds = peer.expected_and_bounds(peer.as_function(theirs), operands, grad_output, stored=stored)
    numerics.assert_within(output.detach(), true[0], bounds[0])
    gradients = [leaf.grad, *(p.grad for p in ours.parameters())]
    for gradient, expected, bound in zip(gradients, true[1:], bounds[1:], strict=True):
        assert gradient is not None
        assert gradient.dtype == torch.float32
        numerics.assert_within(gradient, expected, bound)


def test_autocast_can_be_switched_off_inside() -> None:
    layer = convext.Conv2d(2, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(input_for("Conv2d")).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert layer(input_for("Conv2d")).dtype == torch.float32


# Grad modes ----------------------------------------------------------------------------------------------------------


@each_layer
def test_grad_modes_change_no_bit(name: str) -> None:
    layer, _ = pair(name)
    x = input_for(name)
    expected = layer(x.clone().requires_grad_())
    assert expected.requires_grad
    with torch.no_grad():
        quiet = layer(x)
    with torch.inference_mode():
        inferred = layer(x)
    assert not quiet.requires_grad
    assert inferred.is_inference()
    for output in (quiet, inferred):
        numerics.assert_same_bits(output.clone(), expected.detach())


def test_inference_tensors_are_fine_as_operands() -> None:
    """Outside inference mode too, where nothing is to be saved of them."""
    with torch.inference_mode():
        x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 2, 2)
    numerics.assert_same_bits(C.conv2d(x, w), C.conv2d(x.clone(), w.clone()))
    w = w.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        C.conv2d(x, w)


# Threads -------------------------------------------------------------------------------------------------------------


def run_together(function: Callable[[int], Any], count: int) -> list[Any]:
    """function(0) ... function(count - 1), each in a thread of its own, started at once."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(i: int) -> None:
        barrier.wait()
        results[i] = function(i)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


@pytest.mark.parametrize("algorithm", ["auto", *convext.algorithms("conv2d")])
def test_convolution_from_several_threads(algorithm: str) -> None:
    """Calls at the same time, forward and backward, give the bits of calls one after the other."""
    layer = convext.Conv2d(8, 16, 3, padding=1, algorithm=algorithm)
    inputs = [numerics.normals(seed=i)(2, 8, 20, 20) for i in range(3)]
    peer.skip_if_refused(layer, inputs[0])
    function = peer.as_function(layer)

    def one(i: int) -> list[Tensor]:
        operands = [inputs[i], *(p.detach() for p in layer.parameters())]
        return [t for _ in range(4) for t in peer.results(function, operands, torch.ones(2, 16, 20, 20))]

    alone = [one(i) for i in range(3)]
    for together, expected in zip(run_together(one, 3), alone, strict=True):
        for a, e in zip(together, expected, strict=True):
            numerics.assert_same_bits(a, e)


@pytest.mark.parametrize("algorithm", ["auto", *convext.algorithms("max_pool2d")])
def test_pooling_from_several_threads(algorithm: str) -> None:
    layers = [convext.MaxPool2d(3, 2, 1, algorithm=algorithm), convext.AvgPool2d(3, 2, 1, algorithm=algorithm)]
    inputs = [numerics.normals(seed=i)(2, 8, 20, 20) for i in range(3)]
    for layer in layers:
        peer.skip_if_refused(layer, inputs[0])

    def one(i: int) -> list[Tensor]:
        return [
            t for _ in range(4) for layer in layers for t in peer.results(layer, [inputs[i]], torch.ones(2, 8, 10, 10))
        ]

    alone = [one(i) for i in range(3)]
    for together, expected in zip(run_together(one, 3), alone, strict=True):
        for a, e in zip(together, expected, strict=True):
            numerics.assert_same_bits(a, e)


# Tensor subclasses ---------------------------------------------------------------------------------------------------


class Counted(Tensor):
    """Counts the functions it is given to."""

    seen: list[str]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Counted.seen.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs or {})


class Refusing:
    """Not a tensor, but answers for one: __torch_function__ decides what the call returns."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function, args, kwargs


def function_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    found: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    for d in (1, 2, 3):
        x, w = torch.randn(1, 2, *[5] * d), torch.randn(2, 2, *[2] * d)
        found[f"conv{d}d"] = (x, w, None, 2, 1), {"padding_mode": "reflect", "flip_kernel": True, "algorithm": "naive"}
        found[f"conv_transpose{d}d"] = (x, w, None, 2, 1, 1), {"flip_kernel": True, "algorithm": "naive"}
        found[f"max_pool{d}d"] = (x, 3, 2, 1, 1, True), {"algorithm": "naive"}
        found[f"avg_pool{d}d"] = (x, 3, 2, 1, True, False), {"dilation": 1, "algorithm": "naive"}
    return found


@pytest.mark.parametrize("op", function_calls())
def test_a_subclass_keeps_its_type_and_sees_the_function(op: str) -> None:
    args, kwargs = function_calls()[op]
    x, *rest = args
    Counted.seen = []
    output = getattr(C, op)(x.as_subclass(Counted), *rest, **kwargs)
    assert type(output) is Counted
    assert op in Counted.seen
    numerics.assert_same_bits(output.as_subclass(Tensor), getattr(C, op)(x, *rest, **kwargs))


@pytest.mark.parametrize("op", function_calls())
def test_torch_function_gets_every_argument(op: str) -> None:
    args, kwargs = function_calls()[op]
    function, seen, keywords = getattr(C, op)(Refusing(), *args[1:], **kwargs)
    assert function is getattr(C, op)
    numerics.assert_same_bits(function(args[0], *seen[1:], **keywords), getattr(C, op)(*args, **kwargs))


def test_parameters_that_are_subclasses() -> None:
    layer = convext.Conv2d(2, 3, 3)
    x = input_for("Conv2d")
    expected = layer(x).detach()
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Counted))
    Counted.seen = []
    assert type(layer(x)) is Counted
    assert "conv2d" in Counted.seen
    numerics.assert_same_bits(layer(x).detach().as_subclass(Tensor), expected)
