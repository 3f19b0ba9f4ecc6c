"""The layers as torch.nn.Modules: constructors, repr, state, initialisation, copies, casts, lazy forms, subclasses.

What they compute is test_against_torch.py's; autocast, threads and grad modes are test_modules_running.py's.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import convext
import convext.nn
from tests import numerics, peer

PARAMETRISED = peer.CONVOLUTIONS + peer.TRANSPOSED
POOLS = peer.MAX_POOLS + peer.AVERAGE_POOLS
LAYERS = PARAMETRISED + POOLS
LAZY = tuple(f"Lazy{name}" for name in PARAMETRISED)

each_layer = pytest.mark.parametrize("name", LAYERS)
each_parametrised = pytest.mark.parametrize("name", PARAMETRISED)


def simple(name: str, **kwargs: Any) -> nn.Module:
    return getattr(convext, name)(*((2, 4, 3) if "Conv" in name else (3, 2)), **kwargs)


def input_for(name: str, channels: int = 2) -> Tensor:
    return numerics.normals()(2, channels, *peer.small_size(peer.spatial_of(name)))


# Constructors --------------------------------------------------------------------------------------------------------


def test_every_layer_is_exported_here_and_there() -> None:
    """The layers that are not here are test_more_pools.py's, which looks for all."""
    assert set(convext.nn.__all__) >= {*LAYERS, *LAZY}
    for name in convext.nn.__all__:
        assert getattr(convext, name) is getattr(convext.nn, name)
        assert name in convext.__all__


@pytest.mark.parametrize("name", LAYERS + LAZY)
def test_it_is_a_subclass_of_its_namesake(name: str) -> None:
    assert issubclass(getattr(convext, name), getattr(nn, name))


@each_layer
def test_the_constructor_takes_torchs_arguments_in_torchs_order(name: str) -> None:
    theirs = inspect.signature(getattr(nn, name)).parameters
    ours = inspect.signature(getattr(convext, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for argument, parameter in theirs.items():
        assert ours[argument].default == parameter.default, argument
        assert ours[argument].kind == parameter.kind, argument
    extra = {"algorithm"} | ({"flip_kernel"} if "Conv" in name else set()) | ({"dilation"} if "Avg" in name else set())
    assert set(ours) - set(theirs) == extra
    assert all(ours[argument].kind == inspect.Parameter.KEYWORD_ONLY for argument in extra)


@each_layer
def test_attributes_and_repr_are_torchs(name: str) -> None:
    kwargs: dict[str, Any] = {"stride": 2, "padding": 1}
    if "Conv" in name:
        kwargs |= {"groups": 2, "bias": False, "dilation": 2}
    ours, theirs = peer.pair(name, *((2, 4, 3) if "Conv" in name else (3,)), **kwargs)
    assert repr(ours) == repr(theirs)
    mine = {k: v for k, v in vars(ours).items() if not k.startswith("_") and k not in ("algorithm", "flip_kernel")}
    if name in peer.AVERAGE_POOLS:
        assert mine.pop("dilation") == 1
    assert mine == {k: v for k, v in vars(theirs).items() if not k.startswith("_")}


def test_repr_shows_what_is_convexts_own() -> None:
    assert repr(convext.Conv2d(1, 2, 3, flip_kernel=True, algorithm="naive")) == (
        "Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), flip_kernel=True, algorithm='naive')"
    )
    assert "padding_mode=symmetric" in repr(convext.Conv2d(1, 2, 3, padding=1, padding_mode="symmetric"))
    assert repr(convext.MaxPool2d(2, algorithm="naive")).endswith("algorithm='naive')")
    assert repr(convext.AvgPool2d(2, dilation=3)).endswith("dilation=3)")


@each_layer
def test_wrong_arguments(name: str) -> None:
    with pytest.raises(TypeError):
        simple(name, unknown=1)
    with pytest.raises(TypeError):
        getattr(convext, name)()
    layer = simple(name, algorithm="fastest")
    with pytest.raises(ValueError, match="algorithm must be one of 'auto'"):
        layer(input_for(name))


@pytest.mark.parametrize("name", peer.CONVOLUTIONS)
def test_wrong_padding(name: str) -> None:
    with pytest.raises(ValueError, match="Invalid padding string 'full'"):
        simple(name, padding="full")
    with pytest.raises(ValueError, match=r"one \(before, after\) pair per dimension"):
        simple(name, padding=((1, 2),) * 4)
    with pytest.raises(ValueError, match=r"one \(before, after\) pair per dimension"):
        simple(name, padding=((1, 2, 3),) * peer.spatial_of(name))
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        simple(name, padding_mode="mirror")


# Parameters and state ------------------------------------------------------------------------------------------------


@each_parametrised
def test_initialisation_is_torchs(name: str) -> None:
    torch.manual_seed(7)
    ours = getattr(convext, name)(4, 6, 3, groups=2)
    torch.manual_seed(7)
    theirs = getattr(nn, name)(4, 6, 3, groups=2)
    for key, value in theirs.state_dict().items():
        numerics.assert_same_bits(ours.state_dict()[key], value, key)
    torch.manual_seed(9)
    ours.reset_parameters()
    torch.manual_seed(9)
    theirs.reset_parameters()
    numerics.assert_same_bits(ours.weight.detach(), theirs.weight.detach())


@each_parametrised
@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts_fit_both_ways(name: str, bias: bool) -> None:
    ours, theirs = simple(name, bias=bias), getattr(nn, name)(2, 4, 3, bias=bias)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == (["weight", "bias"] if bias else ["weight"])
    theirs.load_state_dict(ours.state_dict())
    numerics.assert_same_bits(theirs.weight.detach(), ours.weight.detach())
    other = simple(name, bias=bias)
    other.load_state_dict(theirs.state_dict())
    numerics.assert_same_bits(other.weight.detach(), ours.weight.detach())


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
@each_layer
def test_copies(name: str, way: str) -> None:
    """Of layers with everything that torch has no attribute for."""
    extras: dict[str, Any] = {"algorithm": "naive", "padding": ((1, 0),) * peer.spatial_of(name)}
    if name in PARAMETRISED:
        extras["flip_kernel"] = True
    if name in peer.CONVOLUTIONS:
        extras["padding_mode"] = "symmetric"
    layer = simple(name, **extras)
    if way == "deepcopy":
        twin = copy.deepcopy(layer)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    assert all(a is not b for a, b in zip(twin.parameters(), layer.parameters(), strict=True))
    numerics.assert_same_bits(twin(input_for(name)), layer(input_for(name)))


def test_a_saved_state_dict_loads_safely() -> None:
    layer, other = simple("Conv2d"), nn.Conv2d(2, 4, 3)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    numerics.assert_same_bits(other.weight.detach(), layer.weight.detach())


@each_parametrised
def test_casts(name: str, dtype: torch.dtype) -> None:
    """.to(dtype) and the constructor's dtype=: parameters, output and gradients have it."""
    for layer in (simple(name).to(dtype), simple(name, dtype=dtype)):
        output = layer(input_for(name).to(dtype))
        output.sum().backward()
        assert output.dtype == layer.weight.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == dtype


def test_to_channels_last_changes_the_layout_and_not_the_values() -> None:
    layer = simple("Conv2d")
    x = input_for("Conv2d")
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    actual = layer(x.to(memory_format=torch.channels_last))
    assert actual.is_contiguous(memory_format=torch.channels_last)
    one = torch.ones((), dtype=torch.float64)
    theirs = peer.as_function(nn.Conv2d(2, 4, 3))
    operands = peer.layer_operands(layer, x, lambda *shape: one.expand(shape))
    operands[1:] = [p.detach() for p in layer.parameters()]
    true, bounds = peer.expected_and_bounds(theirs, operands, torch.ones_like(expected))
    for output in (actual, expected):
        numerics.assert_within(output.detach(), true[0], bounds[0])


def test_the_constructors_device() -> None:
    assert simple("Conv2d", device="meta").weight.is_meta
    assert simple("ConvTranspose1d").to("meta").bias.is_meta


# Transposed layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", peer.TRANSPOSED)
def test_output_size(name: str) -> None:
    """Every size that torch accepts gives torch's output; every other, a ValueError as there."""
    spatial = peer.spatial_of(name)
    ours, theirs = peer.pair(name, 2, 3, 3, stride=3, padding=1)
    make = numerics.integers()
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight.copy_(numerics.integers(seed=1)(*layer.weight.shape))
            layer.bias.zero_()
    x = make(1, 2, *[4] * spatial)
    least = list(theirs(x).shape[2:])
    for extra in range(-1, 4):
        size = [n + extra for n in least]
        for form in (size, [1, 3, *size]):
            if 0 <= extra < 3:
                numerics.assert_equal(ours(x, output_size=form), theirs(x, output_size=form))
                assert list(ours(x, output_size=form).shape[2:]) == size
                continue
            for layer in (ours, theirs):
                with pytest.raises(ValueError, match="requested an output size of"):
                    layer(x, output_size=form)
    for layer in (ours, theirs):
        with pytest.raises(ValueError, match="output_size must have"):
            layer(x, output_size=[9] * (spatial + 1))
    numerics.assert_equal(ours(x[0], output_size=least), theirs(x[0], output_size=least))


# Lazy layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_layer_becomes_an_ordinary_one(name: str) -> None:
    plain = name.removeprefix("Lazy")
    layer = getattr(convext, name)(4, 3, padding=1, algorithm="naive", flip_kernel=True)
    assert isinstance(layer, nn.modules.lazy.LazyModuleMixin)
    torch.manual_seed(3)
    output = layer(input_for(plain, 5))
    assert type(layer) is getattr(convext, plain)
    assert layer.in_channels == 5
    assert layer.algorithm == "naive"
    assert layer.flip_kernel
    torch.manual_seed(3)
    eager = getattr(convext, plain)(5, 4, 3, padding=1, algorithm="naive", flip_kernel=True)
    numerics.assert_same_bits(output, eager(input_for(plain, 5)))


@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_layer_takes_a_state_dict(name: str) -> None:
    """torch's or ours, before the first call; then the layer has its shapes."""
    plain = name.removeprefix("Lazy")
    source = getattr(nn, plain)(5, 4, 3)
    layer = getattr(convext, name)(4, 3)
    layer.load_state_dict(source.state_dict())
    numerics.assert_same_bits(layer.weight.detach(), source.weight.detach())
    layer(input_for(plain, 5))
    assert type(layer) is getattr(convext, plain)
    numerics.assert_same_bits(layer.weight.detach(), source.weight.detach())


@pytest.mark.parametrize("name", [f"LazyConv{d}d" for d in (1, 2, 3)])
def test_a_lazy_layer_takes_what_torchs_would_refuse(name: str) -> None:
    layer = getattr(convext, name)(4, 3, 2, "same", padding_mode="symmetric")
    x = input_for(name.removeprefix("Lazy"))
    assert list(layer(x).shape[2:]) == [-(-n // 2) for n in x.shape[2:]]
    assert layer.padding == "same"
    assert layer.padding_mode == "symmetric"


def test_a_lazy_layers_copies_are_lazy() -> None:
    layer = convext.LazyConv2d(4, 3, algorithm="naive")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.algorithm == "naive"
        assert twin(torch.zeros(1, 2, 5, 5)).shape == (1, 4, 3, 3)
    assert isinstance(layer, nn.modules.lazy.LazyModuleMixin)


# Subclasses ----------------------------------------------------------------------------------------------------------


class Standardised(convext.Conv2d):
    """Weight standardisation, as users write it for torch.nn.Conv2d."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def test_a_subclass_may_override_conv_forward() -> None:
    layer = Standardised(2, 4, 3, padding=1)
    x = input_for("Conv2d")
    centred = convext.Conv2d(2, 4, 3, padding=1)
    centred.load_state_dict(layer.state_dict())
    with torch.no_grad():
        centred.weight.sub_(centred.weight.mean((1, 2, 3), keepdim=True))
    numerics.assert_same_bits(layer(x), centred(x))


def test_parametrisations() -> None:
    layer = convext.Conv2d(2, 4, 3)
    expected = layer(input_for("Conv2d")).detach()
    nn.utils.parametrize.register_parametrization(layer, "weight", _Doubled())
    layer.parametrizations.weight.original.data.div_(2)
    numerics.assert_same_bits(layer(input_for("Conv2d")).detach(), expected)
    layer(input_for("Conv2d")).sum().backward()
    assert layer.parametrizations.weight.original.grad is not None


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


@pytest.mark.parametrize("normalise", ["weight_norm", "spectral_norm"])
def test_norms_of_weights(normalise: str) -> None:
    """One seed, one parametrised weight: the layer equals the one that holds that weight."""
    layer = getattr(nn.utils.parametrizations, normalise)(convext.Conv2d(2, 4, 3)).eval()
    plain = convext.Conv2d(2, 4, 3)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    numerics.assert_same_bits(layer(input_for("Conv2d")), plain(input_for("Conv2d")))


def test_pruning() -> None:
    layer = prune.l1_unstructured(convext.Conv2d(2, 4, 3), "weight", amount=0.5)
    assert (layer.weight == 0).sum() == layer.weight.numel() // 2
    layer(input_for("Conv2d")).sum().backward()
    assert (layer.weight_orig.grad[layer.weight == 0] == 0).all()
