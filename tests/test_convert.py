"""convext.convert and convext.revert: whole models, in place, sharing everything but the class."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import convext
from tests import numerics

LAYERS: dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    **{f"Conv{d}d": ((2, 4, 3), {"padding": "same", "padding_mode": "reflect"}, (1, 2, *[6] * d)) for d in (1, 2, 3)},
    **{f"ConvTranspose{d}d": ((2, 4, 3), {"stride": 2, "output_padding": 1}, (1, 2, *[4] * d)) for d in (1, 2, 3)},
    **{f"MaxPool{d}d": ((3, 2), {"padding": 1, "ceil_mode": True}, (1, 2, *[6] * d)) for d in (1, 2, 3)},
    **{f"AvgPool{d}d": ((2, 2), {"padding": 1, "count_include_pad": False}, (1, 2, *[6] * d)) for d in (1, 2, 3)},
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.AvgPool2d(2), nn.ConvTranspose2d(4, 2, 2, stride=2)),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


@each_layer
def test_one_layer_itself(name: str) -> None:
    """The module object stays, its class changes; values stay under torch's, gradients flow; revert undoes it."""
    args, kwargs, shape = LAYERS[name]
    layer = getattr(nn, name)(*args, **kwargs).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(numerics.integers(torch.float64)(*p.shape))
    x = numerics.integers(torch.float64)(*shape)
    expected, before, attributes = layer(x).detach(), repr(layer), set(vars(layer))
    report = convext.convert(layer)
    assert type(layer) is getattr(convext, name)
    assert report.swapped == [("", name)]
    assert report.left == []
    actual = layer(x).detach()
    if name.startswith("Avg"):
        eps = torch.finfo(torch.float64).eps
        numerics.assert_within(actual, expected, expected.abs() * 2 * eps)
    else:
        numerics.assert_equal(actual, expected)
    assert repr(layer) == before
    assert convext.revert(layer).swapped == [("", name)]
    assert type(layer) is getattr(nn, name)
    assert set(vars(layer)) == attributes
    numerics.assert_same_bits(layer(x).detach(), expected)


def test_a_whole_model() -> None:
    net = network()
    modules, parameters = list(net.modules()), list(net.parameters())
    state = copy.deepcopy(net.state_dict())
    report = convext.convert(net)
    assert report.swapped == [
        ("", "FusedSequential"),
        ("0", "Conv2d"),
        ("2", "MaxPool2d"),
        ("3.0", "Conv2d"),
        ("3.1", "AvgPool2d"),
        ("3.2", "ConvTranspose2d"),
    ]
    assert report.left == []
    assert "swapped 6 layers, left 0" in str(report)
    assert "3.1: AvgPool2d" in str(report)
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert list(net.state_dict()) == list(state)
    assert convext.revert(net).swapped == [("", "Sequential"), *report.swapped[1:]]
    assert not any(type(m).__module__.startswith("convext") for m in net.modules())
    for name, value in net.state_dict().items():
        numerics.assert_same_bits(value, state[name])


def test_converting_twice_changes_nothing_and_reports_nothing() -> None:
    net = network()
    convext.convert(net)
    report = convext.convert(net)
    assert report.swapped == []
    assert report.left == []


def test_an_optimizer_made_before_goes_on_working() -> None:
    net, twin = network(), network()
    twin.load_state_dict(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    convext.convert(net)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(2, 1, 14, 14)).sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_hooks_stay() -> None:
    layer = nn.Conv2d(1, 1, 3)
    seen: list[tuple[int, ...]] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    convext.convert(layer)
    layer(torch.zeros(1, 1, 5, 5))
    assert seen == [(1, 1, 3, 3)]


def test_a_shared_layer_is_swapped_once() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), conv)
    assert convext.convert(net).swapped == [("", "FusedSequential"), ("0", "Conv2d")]
    assert net[0] is net[2]


def test_the_algorithm_goes_to_the_layers_that_have_it() -> None:
    net = network()
    convext.convert(net, algorithm="im2col")
    assert net[0].algorithm == "im2col"
    assert net[2].algorithm == ("im2col" if "im2col" in convext.algorithms("max_pool2d") else "auto")
    convext.convert(other := network(), algorithm="naive")
    assert other[0].algorithm == other[2].algorithm == "naive"


def test_an_unknown_algorithm_is_refused_before_anything_changes() -> None:
    net = network()
    with pytest.raises(ValueError, match="algorithm must be one of"):
        convext.convert(net, algorithm="fastest")
    assert type(net[0]) is nn.Conv2d


class MyConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class NewPool(nn.Module):
    """A layer that a later torch.nn might have."""

    __module__ = "torch.nn.modules.pooling"


def test_what_is_left_and_why() -> None:
    net = nn.ModuleDict(
        {
            "subclass": MyConv(1, 1, 3),
            "lazy": nn.LazyConv2d(1, 3),
            "new": NewPool(),
            "linear": nn.Linear(1, 1),
        }
    )
    report = convext.convert(net)
    assert report.swapped == []
    reasons = {name: (kind, reason) for name, kind, reason in report.left}
    assert set(reasons) == {"subclass", "lazy", "new"}
    assert reasons["subclass"] == ("MyConv", "a subclass of Conv2d: its own forward might be lost")
    assert "not initialised yet" in reasons["lazy"][1]
    assert reasons["new"] == ("NewPool", "convext has no such layer")
    assert type(net["subclass"]) is MyConv
    assert "subclass: MyConv left: a subclass" in str(report)


def test_a_lazy_layer_is_swapped_once_it_is_initialised() -> None:
    layer = nn.LazyConv2d(2, 3)
    layer(torch.zeros(1, 3, 5, 5))
    assert convext.convert(layer).swapped == [("", "Conv2d")]


BEYOND = {
    "flip_kernel=True": lambda: convext.Conv2d(1, 1, 3, flip_kernel=True),
    "padding_mode='symmetric'": lambda: convext.Conv2d(1, 1, 3, padding=1, padding_mode="symmetric"),
    "padding='same'": lambda: convext.Conv2d(1, 1, 3, stride=2, padding="same"),
    "padding='same_lower'": lambda: convext.Conv1d(1, 1, 3, padding="same_lower"),
    "padding=((1, 0),)": lambda: convext.Conv1d(1, 1, 3, padding=((1, 0),)),
    "padding='valid'": lambda: convext.ConvTranspose2d(1, 1, 3, padding="valid"),
    "padding=((0, 1), (0, 1))": lambda: convext.MaxPool2d(2, padding=((0, 1), (0, 1))),
    "dilation=2": lambda: convext.AvgPool2d(2, dilation=2),
    "dilation=(1, 2)": lambda: convext.AvgPool2d(2, dilation=(1, 2)),
}


@pytest.mark.parametrize("what", BEYOND)
def test_revert_leaves_what_torch_cannot_do(what: str) -> None:
    layer = BEYOND[what]()
    kind = type(layer)
    report = convext.revert(layer)
    assert report.swapped == []
    assert report.left == [("", kind.__name__, f"torch.nn has no {what}")]
    assert type(layer) is kind


def test_revert_takes_layers_made_by_hand() -> None:
    net = nn.Sequential(
        convext.Conv2d(1, 2, 3, padding="same"), convext.MaxPool2d(2, dilation=2), convext.AvgPool2d(2, dilation=(1, 1))
    )
    assert [kind for _, kind in convext.revert(net).swapped] == ["Conv2d", "MaxPool2d", "AvgPool2d"]
    assert net(torch.zeros(1, 1, 12, 12)).shape == torch.Size([1, 2, 2, 2])


def test_a_converted_model_saves_as_torchs_and_back() -> None:
    net, converted = network(), network()
    convext.convert(converted)
    converted.load_state_dict(net.state_dict())
    net.load_state_dict(converted.state_dict())
    assert list(net.state_dict()) == list(converted.state_dict())
