"""Adaptive, global, power-average, k-max and fractional pooling and max unpooling: functions, layers and gradients.

Adaptive windows are problems of tests/cases.py, which every pooling algorithm is held to; here they are held to torch's
layers. What only moves numbers must equal torch's, or a stable sort, bit for bit; power averages obey a bound of one
rounding for each of their steps.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.torch_version import TorchVersion

import convext
import convext.functional as C
from benchmarks.shapes import PoolProblem
from convext import ops
from tests import cases, numerics, peer

SIZES = {1: (2, 3, 13), 2: (2, 3, 9, 7), 3: (2, 3, 6, 7, 5)}

# name of a layer: (constructor arguments, whether it is an average)
ADAPTIVE: dict[str, tuple[tuple[Any, ...], bool]] = {
    f"Adaptive{kind}Pool{d}d": ((((5,), (4, 3), (2, 3, 4))[d - 1],), kind == "Avg")
    for kind in ("Avg", "Max")
    for d in (1, 2, 3)
}
POWER_WINDOWS = [
    p
    for p in cases.POOL_WINDOWS
    if "core" in p.tags
    or p.name in ("rows_65", "small_planes", "stride_3_channels_17", "streamed_1025_channels", "streamed_dilated")
    or p.name in ("window_1xn", "window_larger_than_input", "pool1d_dilated_ceil", "pool3d_halves")
]
POWER = tuple(f"LPPool{d}d" for d in (1, 2, 3))
UNPOOLS = tuple(f"MaxUnpool{d}d" for d in (1, 2, 3))
FRACTIONAL = ("FractionalMaxPool2d", "FractionalMaxPool3d")
OWN = ("GlobalAvgPool", "GlobalMaxPool", "KMaxPool", "KMaxPool1d")
NAMES = (*ADAPTIVE, *POWER, *UNPOOLS, *FRACTIONAL)


def arguments_for(name: str) -> tuple[Any, ...]:
    if name in ADAPTIVE:
        return ADAPTIVE[name][0]
    return {"LP": (2.0, 2), "Ma": (2,), "Fr": (2, 3), "KM": (2,), "Gl": ()}[name[:2]]


def layer(name: str, **kwargs: Any) -> nn.Module:
    return getattr(convext, name)(*arguments_for(name), **kwargs)


def inputs_for(name: str, make: numerics.Maker | None = None) -> tuple[Tensor, ...]:
    shape = SIZES[2 if name in OWN else int(name[-2])]
    if "Unpool" in name:  # only even sizes are what they pool to, unpooled
        shape = (2, 3, 6, 8, 4)[: len(shape)]
    x = (make or numerics.normals())(*shape)
    if "Unpool" not in name:
        return (x,)
    return getattr(F, f"max_pool{name[-2]}d")(x, 2, return_indices=True)


def run(module: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0) -> Any:
    """Draws of fractional pooling are the same every time."""
    torch.manual_seed(seed)
    return module(*inputs)


# Layers --------------------------------------------------------------------------------------------------------------

each_layer = pytest.mark.parametrize("name", NAMES)


@each_layer
def test_a_layer_is_torchs_and_a_little_more(name: str) -> None:
    theirs, ours = getattr(nn, name), getattr(convext, name)
    assert issubclass(ours, theirs)
    given_there, given_here = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
    assert list(given_here)[: len(given_there)] == list(given_there)
    for argument, parameter in given_there.items():
        assert given_here[argument].default == parameter.default, argument
    extra = [p for key, p in given_here.items() if key not in given_there]
    assert {p.name for p in extra} == set(ours.extras)
    assert all(p.kind == inspect.Parameter.KEYWORD_ONLY and p.default == ours.extras[p.name] for p in extra)
    assert repr(layer(name)) == repr(theirs(*arguments_for(name)))
    assert not layer(name).state_dict()


@pytest.mark.parametrize("name", NAMES + OWN)
def test_a_layer_survives_copying_and_pickling(name: str) -> None:
    module, inputs = layer(name), inputs_for(name)
    expected = run(module, inputs)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        numerics.assert_same_bits(run(other, inputs), expected)


@each_layer
def test_convert_and_revert(name: str) -> None:
    model = nn.Sequential(getattr(nn, name)(*arguments_for(name)))
    before = {k: v for k, v in vars(model[0]).items() if not k.startswith("_")}
    assert convext.convert(model).swapped == [("0", name)]
    assert type(model[0]) is getattr(convext, name)
    inputs = inputs_for(name)
    numerics.assert_same_bits(run(model[0], inputs), run(layer(name), inputs))
    assert convext.revert(model).swapped == [("0", name)]
    assert type(model[0]) is getattr(nn, name)
    assert {k: v for k, v in vars(model[0]).items() if not k.startswith("_")} == before


def test_what_torch_has_not_is_not_reverted() -> None:
    model = nn.Sequential(convext.LPPool2d(2, 3, padding=1), convext.LPPool2d(2, 3, dilation=2), convext.LPPool2d(2, 3))
    report = convext.revert(model)
    assert [reason for _, _, reason in report.left] == ["torch.nn has no padding=1", "torch.nn has no dilation=2"]
    assert repr(model[0]).endswith("padding=1)")


def test_algorithms_are_taken_and_shown() -> None:
    x = numerics.integers()(1, 2, 7, 5)
    for name in ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "LPPool2d"):
        assert "algorithm='naive'" in repr(layer(name, algorithm="naive"))
        with pytest.raises(ValueError, match="algorithm must be one of 'auto'"):
            layer(name, algorithm="fastest")(x)
    assert convext.explain(convext.AdaptiveMaxPool2d(3, algorithm="naive"), x).chosen == "naive"
    said = convext.explain("adaptive_avg_pool2d", x, (3, None))
    assert said.chosen == "direct"
    assert "adaptive window [3, 1]" in said.call
    assert "adaptive" not in convext.explain("adaptive_avg_pool2d", x, (7, 5)).call, (
        "parts of one size are plain windows"
    )


def test_global_pools_take_any_dimension() -> None:
    for spatial, shape in SIZES.items():
        x = numerics.integers(largest=9)(*shape)
        mean, most = convext.GlobalAvgPool(), convext.GlobalMaxPool(keepdim=False)
        expected = x.double().flatten(2).mean(2)
        assert mean(x).shape == (2, 3, *[1] * spatial)
        numerics.assert_equal(mean(x).flatten(1), expected.float())
        numerics.assert_same_bits(most(x), x.flatten(2).amax(2))
    with pytest.raises(RuntimeError, match="1 to 3 spatial dimensions"):
        C.global_avg_pool(torch.ones(2, 3))
    with pytest.raises(TypeError, match="input must be a Tensor"):
        C.global_max_pool([1.0])


# Adaptive pooling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_layers_compute_what_torchs_do(name: str, dtype: torch.dtype) -> None:
    (size,), average = ADAPTIVE[name]
    spatial = len(size)
    multiple = 36 if average else 1  # of the products of windows of 2 and 3 places
    for output_size in (size, size[0], 1) if spatial == 1 else (size, size[0], 1, (None,) * spatial):
        if average and output_size == size:
            x = numerics.integers(torch.float64, largest=2)(*SIZES[spatial]) * multiple * 5
        else:
            x = numerics.integers(torch.float64)(*SIZES[spatial])
        expected = getattr(nn, name)(output_size)(x)
        actual = getattr(convext, name)(output_size)(x.to(dtype))
        assert actual.dtype == dtype
        if average:  # the sum is exact, the quotient rounded once, and once more to 16 bits
            slack = (torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps + torch.finfo(dtype).eps) / 2
            numerics.assert_within(actual, expected, expected.abs() * slack, str(output_size))
        else:
            numerics.assert_same_bits(actual, expected.to(dtype), str(output_size))


def test_adaptive_shapes() -> None:
    x = numerics.normals()(2, 3, 6, 8)
    assert C.adaptive_avg_pool2d(x[0], (None, 3)).shape == (3, 6, 3)
    assert C.adaptive_max_pool2d(x, (0, 3)).shape == (2, 3, 0, 3)
    assert C.adaptive_avg_pool2d(x[:0], 3).shape == (0, 3, 3, 3)
    last = x.to(memory_format=torch.channels_last)
    values, indices = C.adaptive_max_pool2d(last, (4, 3), True)
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert indices.dtype == torch.int64
    leaf = x.clone().requires_grad_()
    C.adaptive_avg_pool2d(leaf, (0, 3)).sum().backward()
    assert not leaf.grad.any()


def test_adaptive_errors() -> None:
    x = torch.ones(1, 2, 4, 4)
    for size, error, text in (
        ((2,), RuntimeError, "output_size must be 2 entries"),
        ((2, -1), RuntimeError, "greater than or equal to 0"),
        (2.5, TypeError, "output_size must be an int, None or a sequence"),
        ((2, 2.5), TypeError, "made of ints and None"),
        ("22", TypeError, "output_size must be an int"),
    ):
        for function in (C.adaptive_avg_pool2d, C.adaptive_max_pool2d):
            with pytest.raises(error, match=text):
                function(x, size)
    with pytest.raises(ValueError, match="Input dimension should be at least 3"):
        C.adaptive_avg_pool2d(x[0, 0], 2)
    with pytest.raises(NotImplementedError):
        C.adaptive_avg_pool2d(x.long(), 2)
    with pytest.raises(RuntimeError, match="non-batch dimensions to have positive length"):
        C.adaptive_max_pool2d(torch.ones(1, 2, 0, 4), 2)
    with pytest.raises(RuntimeError, match="have no padding, dilation or ceil_mode"):
        ops.avg_pool(x, [2, 2], [], [0] * 4, [], False, True, None, "auto")


def test_adaptive_maxima_of_integers_and_one_byte_places() -> None:
    x = numerics.integers(torch.int32)(1, 2, 7, 9)
    assert torch.equal(C.adaptive_max_pool2d(x, (3, 2)), F.adaptive_max_pool2d(x.double(), (3, 2)).int())
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        C.adaptive_max_pool2d(x.float().requires_grad_(), (3, 2))
    assert [t.dtype for t in kept] == [torch.uint8]


# Power averages ------------------------------------------------------------------------------------------------------


def definition(x: Tensor, p: float, kernel: tuple[int, ...], stride: int, padding: int, dilation: int) -> Tensor:
    """float64: pad with zeros, look through the windows, sum the powers, take the root."""
    spatial = len(kernel)
    padded = F.pad(x.double(), [padding] * 2 * spatial)
    for axis, k in enumerate(kernel):
        reach = dilation * (k - 1) + 1
        padded = padded.unfold(2 + axis, reach, stride)[..., ::dilation]
    return padded.flatten(2 + spatial).pow(p).sum(-1).pow(1 / p)


@pytest.mark.parametrize("p", [1, 2, 3.0, 2.5, -1.0])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_power_averages_are_the_definition(p: float, spatial: int) -> None:
    """A power, a sum of K terms, a division, a product and a root: each rounds once, and the root shrinks what came
    before it by p."""
    x = numerics.normals()(*SIZES[spatial]).abs() + 0.25
    pool = getattr(C, f"lp_pool{spatial}d")
    kernel = (3, 2, 2)[:spatial]
    for stride, padding, dilation in ((1, 0, 1), (2, 0, 1), (2, 1, 1), (1, 0, 2)):
        if padding and p < 0:
            continue  # a zero to a negative power
        actual = pool(x, p, kernel, stride, padding=padding, dilation=dilation)
        expected = definition(x, p, kernel, stride, padding, dilation)
        roundings = (math.prod(kernel) + 6) * max(1.0, 1 / abs(p)) + 4
        numerics.assert_within(actual, expected, expected.abs() * roundings * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("p", [2, 3.0, math.inf, -math.inf])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_power_averages_are_torchs(p: float, ceil_mode: bool) -> None:
    x = numerics.normals()(2, 3, 9, 8)
    actual, expected = (of.lp_pool2d(x, p, (2, 3), 2, ceil_mode) for of in (C, F))
    if math.isinf(p):
        sign = math.copysign(1, p)
        numerics.assert_same_bits(actual, sign * F.max_pool2d(sign * x.abs(), (2, 3), 2, ceil_mode=ceil_mode))
        if TorchVersion(torch.__version__) >= (2, 13):  # 2.11 takes the infinite power as any other
            numerics.assert_same_bits(actual, expected)
        return
    assert torch.equal(actual.isnan(), expected.isnan()), "the root of a negative sum"
    numerics.assert_within(
        actual.nan_to_num(), expected.nan_to_num().double(), expected.nan_to_num().abs().double() * 24 * 2**-23
    )


@pytest.mark.parametrize("problem", POWER_WINDOWS, ids=lambda p: p.name)
@pytest.mark.parametrize("p", [2, 3.0, 4])
def test_power_kernels_are_the_composed_average(problem: PoolProblem, p: float, dtype: torch.dtype) -> None:
    """The short road of an eager call beside the operators that every other call is composed of, in both layouts."""
    pool = getattr(C, f"lp_pool{problem.spatial}d")
    rest = {"padding": problem.padding, "dilation": problem.dilation}
    window = (problem.kernel, problem.stride, problem.ceil_mode)
    for channels_last in (False, True) if problem.spatial > 1 else (False,):
        x = problem.operand(lambda *size: numerics.normals(dtype)(*size).abs() + 0.25, channels_last)
        results = []
        for algorithm in ("auto", "naive"):
            with numerics.poisoned():
                leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
                output = pool(leaf, p, *window, **rest, algorithm=algorithm)
                (grad,) = torch.autograd.grad(output, leaf, output.detach())
            results.append((output.detach(), grad))
        assert results[0][0].stride() == results[1][0].stride()
        assert results[0][1].stride() == results[1][1].stride()
        terms = 4 * (math.prod(problem.kernel) + 8)
        for actual, expected in zip(*results, strict=True):
            numerics.assert_within(actual, expected, expected.abs().double() * terms * torch.finfo(dtype).eps)


@pytest.mark.parametrize("window", [(2, 2), (3, 2), (5, 1)])
def test_power_averages_are_the_same_whatever_the_threads(window: tuple[int, int]) -> None:
    kernel, stride = window
    for shape in ((3, 40, 61, 50), (2, 5, 150, 140), (2, 9, 12, 30, 40)):
        x = numerics.normals()(*shape)
        pool = getattr(C, f"lp_pool{len(shape) - 2}d")
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        for layout in (torch.contiguous_format, last):
            leaf = x.contiguous(memory_format=layout).requires_grad_()
            results = []
            for count in (1, 2):
                with numerics.threads(count), numerics.poisoned():
                    output = pool(leaf, 2, kernel, stride)
                    results.append((output.detach(), *torch.autograd.grad(output, leaf, output.detach())))
            for one, two in zip(*results, strict=True):
                numerics.assert_same_bits(one, two)
            numerics.assert_same_bits(pool(leaf[1:2], 2, kernel, stride).detach(), results[0][0][1:2])


def test_gradients_of_power_averages_are_torchs() -> None:
    x = (numerics.normals(torch.float64)(1, 2, 6, 6)).abs()
    x[0, 0, :2, :2] = 0  # a sum of zero has no gradient
    results = []
    for of in (C, F):
        leaf = x.clone().requires_grad_()
        results.append(torch.autograd.grad(of.lp_pool2d(leaf, 2.0, 2).sum(), leaf)[0])
    assert not results[0][0, 0, :2, :2].any()
    numerics.assert_within(results[0], results[1], results[1].abs() * 16 * 2**-52)


def test_power_average_errors() -> None:
    x = torch.ones(1, 2, 4, 4)
    with pytest.raises(ValueError, match="norm_type must not be 0"):
        C.lp_pool2d(x, 0, 2)
    with pytest.raises(TypeError, match="norm_type must be a number"):
        C.lp_pool2d(x, "2", 2)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        C.lp_pool2d(x, 2, 5)


# Max unpooling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_unpooling_puts_numbers_back(spatial: int, dtype: torch.dtype) -> None:
    x = numerics.integers(dtype)(*SIZES[spatial])
    for channels_last in (False, True) if spatial > 1 else (False,):
        if channels_last:
            x = x.to(memory_format=torch.channels_last if spatial == 2 else torch.channels_last_3d)
        values, indices = getattr(F, f"max_pool{spatial}d")(x, 3, 2, return_indices=True)
        actual, expected = (
            getattr(of, f"max_unpool{spatial}d")(values, indices, 3, 2, 0, x.shape[2:]) for of in (C, F)
        )
        numerics.assert_same_bits(actual, expected)
        if spatial == 2:  # torch unpools volumes into the contiguous layout alone
            assert actual.stride() == expected.stride()
        numerics.assert_same_bits(
            getattr(C, f"max_unpool{spatial}d")(values[0], indices[0], 3, 2, 0, x.shape), actual[0]
        )


@pytest.mark.parametrize(("channels", "size"), [(50, (4, 5)), (33, (90, 50)), (70, (20, 33)), (1, (100, 90))])
def test_the_last_of_equal_indices_wins_whatever_the_threads(channels: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(0, math.prod(size), (3, channels, 5, 9), generator=generator)
    indices[..., 3, :] = indices[..., 1, :]
    x = numerics.normals()(3, channels, 5, 9)
    expected = torch.zeros(3, channels, math.prod(size))
    for i in range(45):
        expected.scatter_(2, indices.flatten(2)[..., i : i + 1], x.flatten(2)[..., i : i + 1])
    for count in (1, 2):
        for layout in (torch.contiguous_format, torch.channels_last):
            with numerics.threads(count), numerics.poisoned():
                a, b = (t.contiguous(memory_format=layout) for t in (x, indices))
                numerics.assert_same_bits(ops.max_unpool(a, b, size).flatten(2), expected)


# Of one image there are more threads than blocks of channels: rows are divided, unless numbers go from part to part.
PARTS: dict[str, tuple[tuple[int, ...], int, int]] = {  # the unpooled shape, kernel and stride
    "two_rows": ((3, 4, 6), 2, 2),
    "fewer_rows_than_threads": ((64, 2, 50), 2, 2),
    "rows_that_parts_do_not_divide": ((64, 14, 90), 2, 2),
    "a_row_left_over": ((65, 15, 9), 2, 2),
    "overlapping": ((64, 41, 30), 3, 2),
    "stride_1": ((17, 40, 33), 2, 1),
    "one_line": ((5, 600), 3, 3),
    "volume": ((33, 6, 8, 10), 2, 2),
    "one_plane": ((1, 90, 80), 2, 2),
}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("name", PARTS)
def test_unpooling_by_parts(name: str, count: int) -> None:
    shape, kernel, stride = PARTS[name]
    spatial = len(shape) - 1
    values, indices = getattr(F, f"max_pool{spatial}d")(
        numerics.normals()(1, *shape), kernel, stride, return_indices=True
    )
    places = math.prod(shape[1:])
    expected = torch.zeros(1, shape[0], places)
    for i in range(math.prod(values.shape[2:])):  # in order: scatter_ alone does not say which of equal indices wins
        expected.scatter_(2, indices.flatten(2)[..., i : i + 1], values.flatten(2)[..., i : i + 1])
    for channels_last in (False, True) if spatial > 1 else (False,):
        layout = (
            (torch.channels_last, torch.channels_last_3d)[spatial - 2] if channels_last else torch.contiguous_format
        )
        a, b = (t.contiguous(memory_format=layout) for t in (values, indices))
        with numerics.threads(count), numerics.poisoned():
            numerics.assert_same_bits(ops.max_unpool(a, b, shape[1:]).flatten(2), expected)
            b = b.clone()
            b[..., -1] = places  # outside
            with pytest.raises(RuntimeError, match=f"Found an invalid max index: {places}"):
                ops.max_unpool(a, b, shape[1:])


@pytest.mark.parametrize(
    ("channels", "size"),
    [
        (1, (1, 1)),
        (3, (63, 65)),
        (1, (64, 64)),
        (2, (17, 241)),
        (64, (7, 9)),
        (64, (5, 13)),
        (4095, (1, 2)),
        (4097, (2, 1)),
    ],
)
def test_the_gradient_of_unpooling_gathers(channels: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    """About 4096 elements are a task: places of a plane, or all channels of some places."""
    places = (2 * size[0], 2 * size[1])
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(0, math.prod(places), (2, channels, *size), generator=generator)
    grad_output = numerics.integers(dtype)(2, channels, *places)
    expected = grad_output.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    formats = (torch.contiguous_format, torch.channels_last)
    for of_grad, of_indices, count in itertools.product(formats, formats, (1, 2)):
        leaf = torch.zeros(indices.shape, dtype=dtype, requires_grad=True)
        with numerics.threads(count), numerics.poisoned():
            output = C.max_unpool2d(leaf, indices.contiguous(memory_format=of_indices), 2)
            (actual,) = torch.autograd.grad(output, leaf, grad_output.contiguous(memory_format=of_grad))
        numerics.assert_same_bits(actual, expected)


def test_the_gradient_of_unpooling_reads_nothing_outside() -> None:
    leaf, indices = torch.ones(1, 1, 2, 2, requires_grad=True), torch.tensor([[[[0, 1], [2, 3]]]])
    output = C.max_unpool2d(leaf, indices, 2)
    indices.data.mul_(33)  # unseen by autograd
    with pytest.raises(RuntimeError, match="Found an invalid max index: 99"):
        output.sum().backward()


@pytest.mark.parametrize("padding", ["valid", "same", "same_lower", ((1, 0), (0, 1)), (1, 0)])
def test_unpooling_takes_the_padding_that_pooling_took(padding: Any) -> None:
    x = numerics.integers()(2, 3, 8, 9)
    values, indices = convext.MaxPool2d(3, 2, padding, return_indices=True)(x)
    expected = torch.zeros(2, 3, 72).scatter_(2, indices.flatten(2), values.flatten(2)).view_as(x)
    layer = convext.MaxUnpool2d(3, 2, padding)
    numerics.assert_same_bits(layer(values, indices, x.shape), expected)
    if isinstance(padding, str) and padding != "valid":
        with pytest.raises(ValueError, match="give output_size"):
            layer(values, indices)
    else:
        assert layer(values, indices, (8, 9)).shape == x.shape


def test_unpooling_errors() -> None:
    values, indices = torch.ones(1, 1, 2, 2), torch.tensor([[[[0, 1], [2, 3]]]])
    with pytest.raises(RuntimeError, match="Found an invalid max index: 99"):
        C.max_unpool2d(values, indices * 33, 2)
    with pytest.raises(RuntimeError, match="Found an invalid max index: -1"):
        C.max_unpool2d(values, indices - 1, 2)
    with pytest.raises(RuntimeError, match="should be type int64"):
        C.max_unpool2d(values, indices.int(), 2)
    with pytest.raises(RuntimeError, match="Expected shape of indices"):
        C.max_unpool2d(values, indices[..., :1], 2)
    with pytest.raises(ValueError, match="invalid output_size"):
        C.max_unpool2d(values, indices, 2, output_size=(9, 4))
    with pytest.raises(ValueError, match="containing 2 or 4 elements"):
        C.max_unpool2d(values, indices, 2, output_size=(4,))


# Fractional max pooling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [2, 3])
@pytest.mark.parametrize(("size", "kernel", "output"), [(9, 3, 4), (20, 2, 13), (11, 2, 1), (37, 3, 30), (19, 17, 2)])
def test_fractional_maxima_are_torchs(spatial: int, size: int, kernel: int, output: int, dtype: torch.dtype) -> None:
    if spatial == 3 and size > 20:
        return
    x = numerics.integers(dtype)(2, 3, *[size] * spatial)
    samples = torch.rand(2, 3, spatial, generator=torch.Generator().manual_seed(size)).to(dtype).clamp_max(0.99)
    results = []
    for of in (C, F):
        leaf = x.clone().requires_grad_()
        pool = getattr(of, f"fractional_max_pool{spatial}d")
        values, indices = pool(leaf, kernel, output, return_indices=True, _random_samples=samples)
        grad_output = numerics.integers(dtype, largest=1)(*values.shape)
        results.append((values.detach(), indices, torch.autograd.grad(values, leaf, grad_output)[0]))
    for actual, expected in zip(*results, strict=True):
        numerics.assert_equal(actual, expected)


@pytest.mark.parametrize("spatial", [2, 3])
@pytest.mark.parametrize(("size", "kernel", "output"), [(20, 2, 13), (37, 3, 30), (19, 17, 2), (90, 40, 3), (9, 1, 9)])
@pytest.mark.parametrize("kind", ["finite", "zeros", "nan"])
def test_fractional_maxima_need_no_places(spatial: int, size: int, kernel: int, output: int, kind: str) -> None:
    if spatial == 3 and size > 20:
        return
    for dtype in numerics.FLOATS:
        x = numerics.integers(dtype)(2, 3, *[size] * spatial)
        if kind == "zeros":
            x[x > 0], x[x == -1] = 0.0, -0.0
        elif kind == "nan":
            x.view(-1)[:: x.numel() // 7] = math.nan
        samples = torch.rand(2, 3, spatial, generator=torch.Generator().manual_seed(size)).to(dtype).clamp_max(0.99)
        for isa in numerics.ISAS:
            with numerics.instruction_set(isa), numerics.poisoned(), numerics.guarded(x) as (fenced,):
                sizes = [kernel] * spatial, [output] * spatial
                expected, _ = ops.fractional_max_pool(fenced, samples, *sizes, True)
                actual, none = ops.fractional_max_pool(fenced, samples, *sizes, False)
            numerics.assert_same_bits(actual, expected)
            assert none.numel() == 0


def test_fractional_draws_are_torchs_and_any_sample_is_safe() -> None:
    x = numerics.normals()(2, 3, 12, 10)
    results = []
    for of in (C, F):
        torch.manual_seed(3)
        results.append(of.fractional_max_pool2d(x, 2, output_ratio=(0.6, 0.7)))
    numerics.assert_same_bits(*results)
    wild = torch.tensor([math.nan, -5.0, 1e9, math.inf]).repeat(3).view(2, 3, 2)
    with numerics.guarded(x) as (fenced,):
        values, places = ops.fractional_max_pool(fenced, wild, [2, 3], [5, 6], True)
        gradient = ops.fractional_max_pool_backward(values, places, wild, x.shape, [2, 3])
    assert values.shape == (2, 3, 5, 6)
    assert gradient.shape == x.shape


def test_fractional_errors() -> None:
    x = torch.ones(1, 2, 6, 6)
    with pytest.raises(ValueError, match="either an output_size or an output_ratio"):
        C.fractional_max_pool2d(x, 2)
    with pytest.raises(RuntimeError, match="too large relative to input"):
        C.fractional_max_pool2d(x, 4, 4)
    with pytest.raises(RuntimeError, match="random samples must have"):
        C.fractional_max_pool2d(x, 2, 3, _random_samples=torch.rand(1, 2, 3))
    with pytest.raises(RuntimeError, match="same dtype and device"):
        C.fractional_max_pool2d(x, 2, 3, _random_samples=torch.rand(1, 2, 2).double())
    with pytest.raises(ValueError, match="requires output_ratio to be a number or 2"):
        C.fractional_max_pool2d(x, 2, output_ratio=(0.5,))


# Gradients, transforms, compilation ----------------------------------------------------------------------------------

SAMPLES = torch.tensor([[[0.3, 0.7], [0.1, 0.2]]], dtype=torch.float64)
FUNCTIONS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "adaptive_avg": (lambda x: C.adaptive_avg_pool2d(x, (3, 2)), (1, 2, 5, 4)),
    "adaptive_max": (lambda x: C.adaptive_max_pool2d(x, (3, 2)), (1, 2, 5, 4)),
    "global_avg": (C.global_avg_pool, (1, 2, 3, 4)),
    "lp": (lambda x: C.lp_pool2d(x.abs() + 0.5, 3.0, 2, padding=1), (1, 2, 4, 4)),
    "lp_1": (lambda x: C.lp_pool2d(x.abs() + 0.5, 1, 2), (1, 2, 4, 4)),
    "k_max": (lambda x: C.k_max_pool(x, 3), (1, 2, 3, 4)),
    "k_max_1d": (lambda x: C.k_max_pool1d(x, 2, 1), (2, 5, 3)),
    "fractional": (lambda x: C.fractional_max_pool2d(x, 2, 3, _random_samples=SAMPLES), (1, 2, 6, 6)),
    "unpool": (lambda x: C.max_unpool2d(x, torch.tensor([[[[0, 3], [9, 14]]]]), 2), (1, 1, 2, 2)),
}


def apart(shape: tuple[int, ...]) -> Tensor:
    """Numbers that differ by more than the steps of a numerical gradient."""
    count = math.prod(shape)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return ((order.double() + 0.3) / count * 4 - 2).view(shape)  # none of them zero


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_any_order_and_mode(name: str) -> None:
    function, shape = FUNCTIONS[name]
    x = apart(shape).requires_grad_()
    assert gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, (x,), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_transforms(name: str) -> None:
    function, shape = FUNCTIONS[name]
    stack = torch.stack([apart(shape), apart(shape).flip(-1), -apart(shape)])
    expected = torch.stack([function(x) for x in stack])
    numerics.assert_within(torch.vmap(function)(stack), expected, expected.abs() * 2**-50)
    tangent = apart(shape).roll(1, -1)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(function(forward_ad.make_dual(stack[0], tangent))).tangent
    by_func = torch.func.jvp(function, (stack[0],), (tangent,))[1]
    numerics.assert_within(by_func, dual, dual.abs() * 2**-50)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_whole(name: str) -> None:
    function, shape = FUNCTIONS[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = []
    for f in (function, compiled):
        x = apart(shape).requires_grad_()
        y = f(x)
        results.append((y.detach(), *torch.autograd.grad(y.sum(), x)))
    for actual, expected in zip(*results, strict=True):
        numerics.assert_within(actual, expected, expected.abs() * 2**-50)


def test_autocast_is_torchs() -> None:
    for name in NAMES:
        inputs = inputs_for(name)
        inputs = (inputs[0].abs().bfloat16(), *inputs[1:])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours, theirs = run(layer(name), inputs), run(getattr(nn, name)(*arguments_for(name)), inputs)
        if "Unpool" in name:
            continue  # torch widens what it only moves
        assert ours.dtype == theirs.dtype, name


def test_subclasses_and_modes_see_the_call() -> None:
    class Logging(Tensor):
        called: ClassVar[list[Any]] = []

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.called.append(func)
            return NotImplemented if func is None else super().__torch_function__(func, types, args, kwargs or {})

    x = torch.ones(1, 2, 4, 4).as_subclass(Logging)
    for function in (C.adaptive_avg_pool2d, C.adaptive_max_pool2d):
        Logging.called.clear()
        function(x, 2)
        assert Logging.called[0] is function


def test_peers_names_are_complete() -> None:
    """Every pooling layer of convext that is none of peer.py's is looked at here."""
    elsewhere = {*peer.CONVOLUTIONS, *peer.TRANSPOSED, *peer.MAX_POOLS, *peer.AVERAGE_POOLS}
    mine = {name for name in convext.nn.__all__ if name not in elsewhere and "pool" in name.lower()}
    assert mine == {*NAMES, *OWN}
