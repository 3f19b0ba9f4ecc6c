"""The short road of a plain call (csrc/calls.cpp): its results are the long road's, taken when right, and cheap."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import convext
import convext.functional as C
from convext.functional import adaptive_pooling, convolution, other_pooling, pooling
from tests import numerics

AT_LENGTH = (
    (convolution, "_conv_at_length"),
    (convolution, "_conv_transpose_at_length"),
    (pooling, "_max_pool_at_length"),
    (pooling, "_avg_pool_at_length"),
    (adaptive_pooling, "overridden"),
    (other_pooling, "overridden"),
)


class _Long(Exception):
    """A call went the long road."""


def _long(op: str, *args: Any, **kwargs: Any) -> Any:
    """The call ``op`` by the long road."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (convolution, pooling, adaptive_pooling, other_pooling):
            patch.setattr(module, "is_dynamo_compiling", lambda: True)
        return getattr(C, op)(*args, **kwargs)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


CONVOLUTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "defaults": ((), {}),
    "ints": ((None, 2, 1, 1), {}),
    "lists": ((None, [2, 1], [1, 0], [1, 2]), {}),
    "one entry for all": ((None, (2,), (1,), (2,)), {}),
    "torch.Size": ((None, torch.Size((1, 2))), {}),
    "bias": ((_normal(4),), {}),
    "valid": ((None, 2, "valid"), {}),
    "same": ((None, (2, 3), "same", (2, 1)), {}),
    "same_lower": ((None, 2, "same_lower"), {}),
    "pairs": ((None, 1, ((0, 1), [2, 0])), {}),
    "groups": ((None, 1, 0, 1, 2), {}),
    "mode": ((None, 1, 1), {"padding_mode": "reflect"}),
    "flipped": ((None, 1, 1), {"flip_kernel": True}),
    "named": ((None, 1, 1), {"algorithm": "naive"}),
}
TRANSPOSED: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "defaults": ((), {}),
    "stride": ((None, 2), {}),
    "output_padding": ((None, (2, 3), 1, (1, 2)), {}),
    "bias": ((_normal(2),), {}),
    "groups": ((_normal(4), 1, 0, 0, 2), {}),
    "same": ((None, 2, "same"), {}),
    "pairs and dilation": ((None, 2, ((1, 0), (0, 2)), 0, 1, 2), {}),
    "flipped": ((), {"flip_kernel": True}),
}
MAX_POOLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "int": ((2,), {}),
    "empty stride": ((2, []), {}),
    "all": (((3, 2), (2, 1), 1, (1, 2), True), {}),
    "same": ((3, 2, "same"), {}),
    "named": ((2,), {"algorithm": "naive"}),
}
AVG_POOLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "int": ((2,), {}),
    "all": (((3, 2), (2, 1), 1, True, False, 5), {}),
    "dilation": ((2,), {"dilation": 2}),
    "same": ((3, 2, "same", False, False), {}),
}
INDICES = torch.arange(72).flip(0).reshape(9, 8) * 7  # reversed, and apart
OTHER_POOLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("max_pool2d", (2, None, 0, 1, False, True), {}),
    ("adaptive_avg_pool2d", ((4, None),), {}),
    ("adaptive_max_pool2d", (3,), {}),
    ("adaptive_max_pool2d", ((4, 3), True), {}),
    ("max_unpool2d", (INDICES, 3), {}),
    ("max_unpool2d", (INDICES, (4, 3), (3, 3), 1, (26, 22)), {}),
    ("max_unpool2d", (INDICES, 3, None, "same", [2, 4, 26, 23]), {}),
    ("max_unpool2d", (INDICES, 3, [3], ((0, 1), (1, 0)), torch.Size((27, 24))), {}),
    ("k_max_pool1d", (3,), {}),
    ("k_max_pool1d", (3, -2, True), {}),
    ("k_max_pool", (5,), {}),
    ("k_max_pool", (5, True), {}),
    ("fractional_max_pool2d", (2, 3), {}),
    ("fractional_max_pool2d", ((2, 3), None, 0.5, True), {}),
    ("fractional_max_pool2d", (2, None, (0.7, 0.4)), {}),
]
CALLS = [
    *(pytest.param("conv2d", args, kwargs, id=f"conv2d {name}") for name, (args, kwargs) in CONVOLUTIONS.items()),
    *(pytest.param("conv_transpose2d", *call, id=f"conv_transpose2d {name}") for name, call in TRANSPOSED.items()),
    *(pytest.param("max_pool2d", *call, id=f"max_pool2d {name}") for name, call in MAX_POOLS.items()),
    *(pytest.param("avg_pool2d", *call, id=f"avg_pool2d {name}") for name, call in AVG_POOLS.items()),
    *(pytest.param(*call, id=f"{call[0]} {i}") for i, call in enumerate(OTHER_POOLS)),
]


def _operands(op: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    x = _normal(2, 4, 9, 8)
    if "pool" in op:
        return (x,)
    groups = args[4] if len(args) > 4 else 1
    return (x, _normal(4, 2 if op == "conv_transpose2d" else 4 // groups, 3, 2))


def _outputs(call: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """All that a call gives, with the draws of one seed; indices among the arguments are those of each plane."""
    torch.manual_seed(0)
    given = (INDICES.expand(x.shape) if arg is INDICES else arg for arg in args)
    result = call(x, *given, **kwargs)
    return result if isinstance(result, tuple) else (result,)


# The same results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "args", "kwargs"), CALLS)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_both_roads_give_the_same_bits(op: str, args: Any, kwargs: Any, batched: bool) -> None:
    x, *weight = _operands(op, args)
    operands = (x if batched else x[0], *weight)
    expected = _outputs(partial(_long, op), *operands, *args, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        _close_long(patch)
        for a, e in zip(_outputs(getattr(C, op), *operands, *args, **kwargs), expected, strict=True):
            numerics.assert_same_bits(a, e)


@pytest.mark.parametrize(("op", "args", "kwargs"), CALLS)
def test_both_roads_give_the_same_gradients(op: str, args: Any, kwargs: Any) -> None:
    def gradients(call: Callable[..., Tensor], *which: int) -> list[Tensor]:
        operands = [t.clone().requires_grad_(i in which) for i, t in enumerate(_operands(op, args))]
        given = [t.clone().requires_grad_() if isinstance(t, Tensor) and t is not INDICES else t for t in args]
        wanted = [t for t in (*operands, *given) if isinstance(t, Tensor) and t.requires_grad]
        output = _outputs(partial(call, op), *operands, *given, **kwargs)[0]
        return list(torch.autograd.grad(output, wanted, _normal(*output.shape)))

    def short(op: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(C, op)(*args, **kwargs)

    for which in ((0,), (1,), (0, 1)) if "conv" in op else ((0,),):
        for actual, expected in zip(gradients(short, *which), gradients(_long, *which), strict=True):
            numerics.assert_same_bits(actual, expected, f"gradient, {which} asked for")


@pytest.mark.parametrize(("op", "args", "kwargs"), CALLS)
def test_gradients_of_gradients_after_the_short_road(op: str, args: Any, kwargs: Any) -> None:
    operands = [t.double().requires_grad_() for t in _operands(op, args)]
    args = tuple(t.double() if isinstance(t, Tensor) and t is not INDICES else t for t in args)

    def function(*operands: Tensor) -> Tensor:
        return _outputs(getattr(C, op), *operands, *args, **kwargs)[0]

    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)


def test_what_is_saved_is_freed_and_said() -> None:
    x, w = _normal(1, 2, 5, 5), _normal(3, 2, 3, 3).requires_grad_()
    y = C.conv2d(x, w).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    y = C.conv2d(x, w).sum()
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_gradients_of_many_outputs_at_once() -> None:
    x, w = _normal(1, 2, 5, 5).requires_grad_(), _normal(3, 2, 3, 3).requires_grad_()
    y = C.avg_pool2d(C.max_pool2d(C.conv2d(x, w, padding=1), 2), 2)
    grads = torch.eye(y.numel()).reshape(y.numel(), *y.shape)
    together = torch.autograd.grad(y, (x, w), grads, is_grads_batched=True, retain_graph=True)
    for i, one in enumerate(grads):
        for batch, alone in zip(together, torch.autograd.grad(y, (x, w), one, retain_graph=True), strict=True):
            torch.testing.assert_close(batch[i], alone)


# The same errors -----------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 3, 3, 3)), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3)), {}),
    ("conv2d", (_normal(4, 5), _normal(4, 4, 3, 3)), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, 0), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, (1, 1, 1)), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, 1.5), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, True), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, 2**70), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, 1, -1), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, 1, "full"), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, 1, ((1, 2),)), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), _normal(3)), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), 1), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3).double()), {}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3)), {"algorithm": "fast"}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3)), {"algorithm": "\ud800"}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3)), {"padding_mode": "wrap"}),
    ("conv2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3)), {"flip_kernel": 1}),
    ("conv2d", ([1], _normal(4, 4, 3, 3)), {}),
    ("conv_transpose2d", (_normal(1, 3, 5, 5), _normal(4, 4, 3, 3)), {}),
    ("conv_transpose2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, 2, 0, 2), {}),
    ("conv_transpose2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), None, 2, "same", 1), {}),
    ("conv_transpose2d", (_normal(1, 4, 5, 5), _normal(4, 4, 3, 3), _normal(3)), {}),
    ("max_pool2d", (_normal(1, 4, 5, 5), 0), {}),
    ("max_pool2d", (_normal(1, 4, 5, 5), 2, 1, 2), {}),
    ("max_pool2d", (_normal(1, 4, 5, 5), 9), {}),
    ("max_pool2d", (_normal(5, 5), 2), {}),
    ("avg_pool2d", (_normal(1, 4, 5, 5), 2, None, 0, False, True, 0), {}),
    ("avg_pool2d", (_normal(1, 4, 5, 5).long(), 2), {}),
    ("avg_pool2d", (_normal(1, 4, 5, 5), 2, None, 0, 1), {}),
]


@pytest.mark.parametrize(("op", "args", "kwargs"), WRONG)
def test_both_roads_refuse_in_the_same_words(op: str, args: Any, kwargs: Any) -> None:
    def said(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[type, str] | None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            return type(error), str(error).splitlines()[0]
        return None

    assert said(getattr(C, op), *args, **kwargs) == said(_long, op, *args, **kwargs)


# Which road ----------------------------------------------------------------------------------------------------------


def _close_long(patch: pytest.MonkeyPatch) -> None:
    def closed(*args: Any) -> None:
        raise _Long

    for module, name in AT_LENGTH:
        patch.setattr(module, name, closed)


@pytest.fixture
def long_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a call that needs the long road raises _Long."""
    _close_long(monkeypatch)


@pytest.mark.usefixtures("long_closed")
def test_layers_take_the_short_road() -> None:
    image = _normal(1, 4, 8, 8)
    layers = [
        convext.Conv2d(4, 4, 3, padding="same", stride=2, padding_mode="symmetric"),
        convext.Conv2d(4, 4, 3, padding=((0, 1), (1, 0))),
        convext.ConvTranspose2d(4, 2, 3, 2, 1, 1),
        convext.MaxPool2d(2),
        convext.AvgPool2d(2, padding="same"),
    ]
    for layer in layers:
        layer(image)
        with torch.no_grad():
            layer(image)
        with torch.inference_mode():
            layer(image)
        layer(image.to(memory_format=torch.channels_last))
        layer(image[:, :, ::2, ::2])


@pytest.mark.usefixtures("long_closed")
def test_what_is_not_plain_takes_the_long_road() -> None:
    x, w = _normal(1, 4, 8, 8), _normal(4, 4, 3, 3)

    def conv(x: Tensor, w: Tensor = w) -> Tensor:
        return C.conv2d(x, w)

    with pytest.raises(_Long):
        torch.func.vmap(conv)(x.unsqueeze(0))
    with pytest.raises(_Long):
        torch.func.grad(lambda x: conv(x).sum())(x)
    with pytest.raises(_Long):
        torch.func.jvp(conv, (x,), (x,))
    with pytest.raises(_Long), torch.autograd.forward_ad.dual_level():
        conv(torch.autograd.forward_ad.make_dual(x, x))
    with pytest.raises(_Long), torch.autocast("cpu"):
        conv(x)
    with pytest.raises(_Long), torch.utils._python_dispatch.TorchDispatchMode():
        conv(x)
    with pytest.raises(_Long):
        conv(x.to("meta"), w.to("meta"))
    with pytest.raises(_Long):
        torch.jit.trace(conv, (x,), check_trace=False)
    with pytest.raises(_Long), torch._subclasses.FakeTensorMode() as mode:
        conv(mode.from_tensor(x), mode.from_tensor(w))


def test_a_subclass_has_its_say() -> None:
    asked = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append((func, kwargs))
            return super().__torch_function__(func, types, args, kwargs or {})

    x = _normal(1, 4, 8, 8).as_subclass(Watching)
    assert isinstance(C.conv2d(x, _normal(4, 4, 3, 3), padding_mode="reflect"), Watching)
    assert asked[0] == (C.conv2d, {"padding_mode": "reflect", "flip_kernel": False, "algorithm": "auto"})
    assert isinstance(C.max_pool2d(x, 2), Watching)
    assert isinstance(C.avg_pool2d(x, 2), Watching)
    assert isinstance(C.conv_transpose2d(x, _normal(4, 4, 3, 3)), Watching)


def test_a_profile_shows_the_operator() -> None:
    x, w = _normal(1, 4, 8, 8), _normal(4, 4, 3, 3).requires_grad_()
    with torch.profiler.profile() as profile:
        C.conv2d(x, w).sum().backward()
    names = {event.name for event in profile.events()}
    assert {"convext::conv_forward", "convext::conv_backward_weight"} <= names


# What it costs -------------------------------------------------------------------------------------------------------


def _python_calls(run: Callable[[], Any]) -> int:
    """How many functions, of Python and of C, a call comes to."""
    count = 0

    def watch(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count - 2  # run itself, and setprofile


def _pairs() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """A small call of each kind, convext's and torch's."""
    torch_f = torch.nn.functional
    x, w, b = _normal(1, 4, 8, 8), _normal(4, 4, 3, 3), _normal(4)
    leaf = w.clone().requires_grad_()
    layers = convext.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1)
    pools = convext.MaxPool2d(2), torch.nn.MaxPool2d(2)
    pooled = torch_f.max_pool2d(x, 2, return_indices=True)
    samples = torch.rand(1, 4, 2)
    return {
        "conv2d": (lambda: C.conv2d(x, w, b, 1, 1), lambda: torch_f.conv2d(x, w, b, 1, 1)),
        "conv2d, gradient": (lambda: C.conv2d(x, leaf, b, 1, 1), lambda: torch_f.conv2d(x, leaf, b, 1, 1)),
        "Conv2d": (lambda: layers[0](x), lambda: layers[1](x)),
        "max_pool2d": (lambda: C.max_pool2d(x, 2), lambda: torch_f.max_pool2d(x, 2)),
        "MaxPool2d": (lambda: pools[0](x), lambda: pools[1](x)),
        "avg_pool2d": (lambda: C.avg_pool2d(x, 2), lambda: torch_f.avg_pool2d(x, 2)),
        "adaptive_max_pool2d": (
            lambda: C.adaptive_max_pool2d(x, 3, True),
            lambda: torch_f.adaptive_max_pool2d(x, 3, True),
        ),
        "max_unpool2d": (lambda: C.max_unpool2d(*pooled, 2), lambda: torch_f.max_unpool2d(*pooled, 2)),
        "k_max_pool1d": (lambda: C.k_max_pool1d(x, 3), lambda: torch.topk(x, 3)),
        "fractional_max_pool2d": (
            lambda: C.fractional_max_pool2d(x, 2, 5, _random_samples=samples),
            lambda: torch_f.fractional_max_pool2d(x, 2, 5, _random_samples=samples),
        ),
    }


@pytest.mark.parametrize("name", list(_pairs()))
def test_a_plain_call_runs_few_functions(name: str) -> None:
    ours, _theirs = _pairs()[name]
    ours()
    layer = 12 if name[0].isupper() else 0
    assert _python_calls(ours) <= 4 + layer, "_C.conv, conv2d, is_dynamo_compiling"


@pytest.mark.parametrize("name", list(_pairs()))
def test_a_small_call_costs_about_what_torch_takes(name: str) -> None:
    """A guard against a slow road taken unawares (4 to 20 times torch's time); the benchmark has the exact ratios."""
    ours, theirs = _pairs()[name]

    def seconds(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(200):
            run()
        return time.perf_counter() - start

    with numerics.threads(1):
        ratios = [seconds(ours) / seconds(theirs) for _ in range(15)]
    assert statistics.median(ratios) < 3
