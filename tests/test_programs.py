"""The program that runs an optimised model's graph calls what Python would call, whatever was done to the layers."""

from __future__ import annotations

import copy
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import convext
from convext.inference import Chain, ChannelScale, FusedConv, OptimizedModel, program


class Net(nn.Module):
    """A residual, a normalisation of its own, pools, a concatenation, methods and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm2d(3)
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.pool, self.mean, self.greatest = nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(1)
        self.last = nn.Linear(16, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = torch.relu(self.first(torch.relu(self.norm(x) * self.scale)))
        x = torch.relu(self.third(self.second(x)) + x)
        joined = torch.cat([self.pool(x), self.mean(x)], 1)
        y = self.last(self.greatest(joined).flatten(1))
        return y, [y.mul(2), joined.size(1) * y]


def net(model: nn.Module | None = None, size: int = 12) -> tuple[OptimizedModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    return convext.optimize((model or Net()).eval(), x), x


def flat(result: Any) -> Tensor:
    return torch.cat([t.flatten() for t in (result[0], *result[1])])


def by_python(model: OptimizedModel, *args: Any) -> Any:
    before = model._program
    model._program = program.ProgramOf()
    model._program.get = lambda module: None  # type: ignore[method-assign]
    try:
        return model(*args)
    finally:
        model._program = before


def layer(model: OptimizedModel, kind: type[nn.Module]) -> Any:
    return next(m for m in model.body.modules() if type(m) is kind)


@pytest.mark.parametrize("size", [12, 192])  # maps that are too small for a chain, and large enough
def test_same_bits_as_python(size: int) -> None:
    model, x = net(size=size)
    kinds = {type(m) for m in model.body.modules()}
    assert {FusedConv, ChannelScale} <= kinds
    assert (Chain in kinds) == (size == 192)
    assert model._program.get(model.body) is not None
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(flat(model(x)), flat(by_python(model, x)))
    x = x[:1, :, 1:]
    assert torch.equal(flat(model(x)), flat(by_python(model, x)))


def test_every_layer_of_the_table() -> None:
    """Each type's road reads its options where the layer keeps them."""
    for spatial in (1, 2, 3):
        shape, per_axis = (2, 4, 7, 6, 5)[: 2 + spatial], (2, 3, 2)[:spatial]
        layers: list[nn.Module] = [
            getattr(nn, f"MaxPool{spatial}d")(3, 2, 1, 1, ceil_mode=True),
            getattr(nn, f"AvgPool{spatial}d")(3, 2, 1, ceil_mode=True, count_include_pad=False),
            getattr(nn, f"AdaptiveAvgPool{spatial}d")(per_axis),
            getattr(nn, f"AdaptiveMaxPool{spatial}d")(per_axis),
            getattr(nn, f"Conv{spatial}d")(4, 6, 3, 2, 1, 2, groups=2),
        ]
        if spatial > 1:
            layers.append(getattr(nn, f"AvgPool{spatial}d")(2, divisor_override=3))
        for one in layers:
            x = torch.randn(shape)
            model = convext.optimize(nn.Sequential(one).eval(), x)
            ours = next(m for m in model.body.children() if not list(m.children()))
            assert type(ours) in program._ROADS, type(ours)
            seen: list[str] = []
            type(ours).forward, original = _noting(seen, type(ours).forward), type(ours).forward  # type: ignore[method-assign]
            try:
                by_python(model, x)
                assert seen == ["called"]
            finally:
                type(ours).forward = original  # type: ignore[method-assign]
            assert torch.equal(model(x), by_python(model, x))
            torch.testing.assert_close(model(x), one(x))


def _noting(seen: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        seen.append("called")
        return function(*args, **kwargs)

    return call


def test_no_python_between_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net()
    called: list[str] = []
    monkeypatch.setattr(nn.Module, "__call__", _noting(called, nn.Module.__call__))
    model.forward(x)
    assert called == ["called"]  # the linear layer


def test_hooks_are_called() -> None:
    model, x = net(size=192)
    seen: list[str] = []
    for kind in (FusedConv, ChannelScale, Chain, convext.nn.MaxPool2d):
        own = layer(model, kind)
        handles = [
            own.register_forward_pre_hook(lambda m, _: seen.append(f"before {type(m).__name__}")),
            own.register_forward_hook(lambda m, *_: seen.append(f"after {type(m).__name__}")),
        ]
        model(x)
        assert seen == [f"before {kind.__name__}", f"after {kind.__name__}"]
        for handle in handles:
            handle.remove()
        seen.clear()
        model(x)
        assert not seen
    with_hook = model.body.register_forward_hook(lambda *_: seen.append("body"))
    everywhere = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    model(x)
    assert seen.count("body") == 1
    assert {"Chain", "ChannelScale", "FusedLinear"} <= set(seen)
    with_hook.remove()
    everywhere.remove()


def test_a_hook_may_change_the_output() -> None:
    model, x = net()
    expected = flat(model(x))
    handle = layer(model, ChannelScale).register_forward_hook(lambda _m, _i, output: output * 0)
    changed = flat(model(x))
    assert not torch.equal(changed, expected)
    assert torch.equal(changed, flat(by_python(model, x)))
    handle.remove()
    assert torch.equal(flat(model(x)), expected)


CHANGES: dict[str, Callable[[OptimizedModel], Any]] = {
    "parameter": lambda m: layer(m, FusedConv).take(torch.randn_like(layer(m, FusedConv).weight), None),
    "parameter in place": lambda m: layer(m, FusedConv).weight.data.mul_(3),
    "no bias": lambda m: setattr(layer(m, FusedConv), "bias", None),
    "option": lambda m: setattr(layer(m, FusedConv), "activation", convext.inference.Activation("tanh")),
    "algorithm": lambda m: setattr(layer(m, convext.nn.MaxPool2d), "algorithm", "naive"),
    "pool": lambda m: setattr(layer(m, convext.nn.AvgPool2d), "divisor_override", 7),
    "scale": lambda m: setattr(layer(m, ChannelScale), "scale", nn.Parameter(torch.zeros(3), requires_grad=False)),
    "forward of one": lambda m: setattr(
        layer(m, FusedConv), "forward", lambda x, r=None: torch.zeros(2, 8, *x.shape[2:])
    ),
    "another layer": lambda m: setattr(m.body, _name(m, convext.nn.MaxPool2d), nn.AvgPool2d(2)),
    "attribute": lambda m: m.body.scale.data.fill_(2),
}


def _name(model: OptimizedModel, kind: type[nn.Module]) -> str:
    return next(name for name, m in model.body.named_children() if type(m) is kind)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [12, 192])
def test_changes_of_layers_are_noticed(change: str, size: int) -> None:
    model, x = net(size=size)
    before = flat(model(x))
    with torch.no_grad():
        CHANGES[change](model)
    after = flat(model(x))
    assert torch.equal(after, flat(by_python(model, x)))
    assert torch.equal(after, before) == (change == "algorithm")


def test_another_forward_of_a_type_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net()
    called: list[str] = []
    for kind in (FusedConv, ChannelScale, convext.nn.MaxPool2d):
        monkeypatch.setattr(kind, "forward", _noting(called, kind.forward))
    model(x)
    kinds = FusedConv | ChannelScale | convext.nn.MaxPool2d  # FusedLinear, too, calls FusedConv's
    assert len(called) == sum(isinstance(m, kinds) for m in model.body.modules())


def test_a_recompiled_graph_is_run() -> None:
    model, x = net()
    before = model(x)[0]
    body: Any = model.body
    linear = next(n for n in body.graph.nodes if n.target == "last")
    with body.graph.inserting_after(linear):
        negative = body.graph.call_function(torch.neg, (linear,))
    linear.replace_all_uses_with(negative)
    negative.args = (linear,)
    assert torch.equal(model(x)[0], before)  # not yet
    body.recompile()
    assert torch.equal(model(x)[0], -before)


def test_functional_call_and_function_modes() -> None:
    model, x = net()
    name = next(n for n, p in model.named_parameters() if p.dim() == 4)
    weights = {name: torch.zeros_like(model.get_parameter(name))}
    assert torch.equal(
        flat(torch.func.functional_call(model, weights, (x,))),
        flat(torch.func.functional_call(_without(model), weights, (x,))),
    )

    class Names(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with Names():
        model(x)
    ours = [name for name in seen if "conv" in name or "pool" in name or name == "cat"]
    seen.clear()
    with Names():
        by_python(model, x)
    assert len(ours) >= 6
    assert ours == [name for name in seen if "conv" in name or "pool" in name or name == "cat"]


def _without(model: OptimizedModel) -> OptimizedModel:
    other = copy.copy(model)
    other._program = program.ProgramOf()
    other._program.get = lambda module: None  # type: ignore[method-assign]
    return other


def test_copies_write_their_own() -> None:
    model, x = net()
    expected = flat(model(x))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert torch.equal(flat(other(x)), expected)
        assert other._program.get(other.body) not in (None, model._program.get(model.body))
        with torch.no_grad():
            layer(other, FusedConv).weight.mul_(2)
        assert not torch.equal(flat(other(x)), expected)
        assert torch.equal(flat(model(x)), expected)


@pytest.mark.parametrize("shape", [(2, 4, 12, 12), (2, 3, 12), (2, 3, 1, 1)])
def test_errors_are_pythons(shape: tuple[int, ...]) -> None:
    model, _ = net()
    x = torch.randn(shape)
    with pytest.raises(Exception) as ours:
        model(x)
    with pytest.raises(type(ours.value)) as theirs:
        by_python(model, x)
    assert str(ours.value) == str(theirs.value)
    with pytest.raises(TypeError, match="positional argument"):
        model(x, x)
    with pytest.raises(TypeError, match="unexpected keyword"):
        model(x, size=3)


def test_an_error_of_a_function_keeps_its_type() -> None:
    model = convext.optimize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.randn(1, 3, 4, 4))
    graph = model.body.graph  # type: ignore[union-attr]
    last = next(n for n in graph.nodes if n.op == "output")
    with graph.inserting_before(last):  # type: ignore[operator]
        last.args = (graph.call_function(_refuse, (last.args[0],)),)  # type: ignore[operator]
    model.body.recompile()  # type: ignore[operator]
    assert model._program.get(model.body) is not None
    with pytest.raises(LookupError, match="refused"):
        model(torch.randn(1, 3, 4, 4))


def _refuse(x: Tensor) -> Tensor:
    raise LookupError("refused")


def test_values_die_when_they_were_used_last() -> None:
    model, x = net()
    alive: list[Any] = []
    sizes: list[int] = []

    def note(_m: Any, args: Any, output: Any) -> None:
        alive.append(weakref.ref(output))
        sizes.append(sum(one() is not None for one in alive))

    for m in model.body.children():
        m.register_forward_hook(note)
    result = model(x)
    assert max(sizes) <= 3
    assert len(sizes) >= 6
    del result
    assert not any(one() is not None for one in alive)


class Sliced(nn.Module):
    def forward(self, x: Tensor, scale: float = 2.0) -> dict[str, Tensor]:
        return {"y": x[:, :2] * scale}


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": torch.add(self.conv(x), x.sum(), alpha=2)}


def test_what_programs_have_no_words_for() -> None:
    """Defaults and dictionaries stay with Python; keyword arguments do not."""
    x = torch.randn(1, 3, 4, 4)
    for kind in (Sliced, Keyed):
        model = convext.optimize(kind(), x)
        assert model._program.get(model.body) is None
        torch.testing.assert_close(model(x)["y"], by_python(model, x)["y"])
    keyed: Any = convext.optimize(nn.Sequential(nn.Conv2d(3, 4, 1)), x)
    output = next(n for n in keyed.body.graph.nodes if n.op == "output")
    with keyed.body.graph.inserting_before(output):
        output.args = (keyed.body.graph.call_function(torch.add, output.args * 2, {"alpha": 3}),)
    keyed.body.recompile()
    assert keyed._program.get(keyed.body) is not None
    torch.testing.assert_close(keyed(x), by_python(keyed, x), rtol=0, atol=0)
