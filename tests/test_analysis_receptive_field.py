"""convext.analysis.receptive_field: against gradients place by place, and against the numbers of papers."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convext
import convext.functional as C
from benchmarks import networks
from convext.analysis import FieldRow, effective_receptive_field, receptive_field

# What gradients show -------------------------------------------------------------------------------------------------


def seen_by_gradients(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, int] | None]:
    """For every place of the last axis of the output, in the middle of the other axes: the first and the last place of
    the input's last axis whose gradient is not zero. Parameters are made positive, so that nothing cancels."""
    model.double().eval()
    for p in model.parameters():
        p.data = torch.rand_like(p) + 0.5
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    y = model(x)
    windows: list[tuple[int, int] | None] = []
    for place in range(y.shape[-1]):
        middle = tuple(n // 2 for n in y.shape[2:-1])
        (gradient,) = torch.autograd.grad(y[(0, slice(None), *middle, place)].sum(), x, retain_graph=True)
        at = gradient.flatten(0, -2).abs().sum(0).nonzero().flatten().tolist()
        windows.append((at[0], at[-1]) if at else None)
    return windows


def check_inside(row: FieldRow, windows: list[tuple[int, int] | None], size: int) -> int:
    """Compares every place whose window lies in the input; how many were there?"""
    inside = 0
    for place, seen in enumerate(windows):
        expected = row.fields[-1].window(place)  # type: ignore[index]
        if expected is None or (expected[0] >= 0 and expected[1] < size):
            assert seen == expected, (place, seen, expected)
            inside += expected is not None
    return inside


class Branches(nn.Module):
    """Branches of one input, added up or side by side."""

    def __init__(self, branches: list[nn.Module], cat: bool) -> None:
        super().__init__()
        self.branches, self.cat = nn.ModuleList(branches), cat

    def forward(self, x: Tensor) -> Tensor:
        results = [branch(x) for branch in self.branches]
        return torch.cat(results, 1).mean(1, keepdim=True) if self.cat else sum(results[1:], results[0])


def layer_of(draw: Any, smooth: bool) -> tuple[nn.Module, nn.Module]:
    """A layer of one channel, and what stands for it where gradients are taken (averages for maxima)."""
    kind = draw(st.sampled_from(["conv", "ours", "max", "avg", "transposed", "nearest", "linear", "pad", "branches"]))
    kernel, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    if kind == "conv":
        return (layer := nn.Conv1d(1, 1, kernel, stride, before, dilation)), layer
    if kind == "ours":
        padding = draw(st.sampled_from(["same", "same_lower", "valid", ((before, after),)]))
        return (layer := convext.Conv1d(1, 1, kernel, stride, padding, dilation, flip_kernel=smooth)), layer
    if kind == "max":
        window = (kernel, stride, min(before, kernel // 2))
        return nn.MaxPool1d(*window, dilation), convext.AvgPool1d(*window, dilation=dilation)
    if kind == "avg":
        return (layer := nn.AvgPool1d(kernel, stride, min(before, kernel // 2), ceil_mode=smooth)), layer
    if kind == "transposed":
        return (layer := nn.ConvTranspose1d(1, 1, kernel, stride, min(before, kernel - 1), dilation=dilation)), layer
    if kind == "nearest":
        return (layer := nn.Upsample(scale_factor=stride)), layer
    if kind == "linear":
        return (layer := nn.Upsample(scale_factor=stride, mode="linear")), layer
    if kind == "pad":
        return (layer := nn.ConstantPad1d((before, -after), 0.0)), layer
    inner = [nn.Conv1d(1, 1, k, padding=k // 2 * dilation, dilation=dilation) for k in (1, 3, 5)[: 1 + stride]]
    return (layer := Branches([nn.Identity(), *inner], smooth)), layer


@st.composite
def models(draw: Any) -> tuple[nn.Module, nn.Module]:
    pairs = [layer_of(draw, draw(st.booleans())) for _ in range(draw(st.integers(1, 4)))]
    ours, smooth = zip(*pairs, strict=True)
    return nn.Sequential(*ours), nn.Sequential(*smooth)


@settings(max_examples=60)
@given(models())
def test_generated_models_against_gradients(pair: tuple[nn.Module, nn.Module]) -> None:
    model, smooth = pair
    size = 60
    try:
        windows = seen_by_gradients(smooth, (1, 1, size))
    except RuntimeError:
        return  # a size below nothing
    model.double()
    found = receptive_field(model, torch.rand(1, 1, size, dtype=torch.float64))
    row = found.output
    check_inside(row, windows, size)
    widest = max((w[1] - w[0] + 1 for w in windows if w is not None), default=0)
    assert widest <= row.size[0]
    first = row.fields[0].window(0)  # type: ignore[index]
    if first is not None:
        assert row.start == first[:1]
        assert row.centre == (Fraction(first[0] + first[1], 2),)


PLANES: list[nn.Module] = [
    nn.Sequential(nn.Conv2d(2, 3, (1, 3), 2, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, groups=3, dilation=(1, 2))),
    nn.Sequential(nn.ConvTranspose2d(2, 2, 4, 2, 1), nn.Conv2d(2, 2, 3, 3)),
    nn.Sequential(nn.LPPool2d(2, 3, 2), nn.AdaptiveAvgPool2d((None, 7))),
    nn.Sequential(convext.ConvTranspose2d(2, 4, 3, 3, padding="same"), nn.PixelShuffle(2), nn.AvgPool2d(5, 2)),
    nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(8, 4, 3), nn.UpsamplingBilinear2d(scale_factor=2)),
    nn.Sequential(nn.Upsample(scale_factor=2.5, mode="nearest"), nn.Conv2d(2, 2, 2)),
    nn.Sequential(nn.Upsample(size=(30, 45), mode="bilinear"), nn.Softmax2d(), nn.Conv2d(2, 2, 2)),
    nn.Sequential(nn.ZeroPad2d((3, 1, 0, 0)), nn.BatchNorm2d(2), nn.MaxPool2d(1, 2), nn.Dropout(0.5)),
    nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.AvgPool2d(3, 1, 1)),
]


@pytest.mark.parametrize("model", PLANES, ids=range(len(PLANES)))
def test_planes_against_gradients(model: nn.Module) -> None:
    row = receptive_field(model.double(), (1, 2, 16, 30)).output
    assert check_inside(row, seen_by_gradients(model, (1, 2, 16, 30)), 30) > 2


def test_volumes_and_lines() -> None:
    volume = receptive_field(nn.Sequential(nn.Conv3d(1, 1, (1, 2, 3)), nn.AvgPool3d(2)), (1, 1, 6, 7, 8)).output
    assert (volume.size, volume.jump) == ((2, 3, 4), (2, 2, 2))
    line = receptive_field(convext.Conv1d(3, 3, 5, dilation=3, padding="same_lower"), (2, 3, 20)).output
    assert (line.size, line.start, line.centre) == ((13,), (-6,), (Fraction(0),))


# Closed form and papers ----------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3)), max_size=6))
def test_closed_form(layers: list[tuple[int, int, int, int]]) -> None:
    """r_l = 1 + sum (k_i - 1) d_i prod s_j"""
    model = nn.Sequential(nn.Identity(), *[nn.Conv1d(1, 1, k, s, p, d) for k, s, p, d in layers])
    size, jump, start = 1, 1, 0
    for k, s, p, d in layers:
        size, start, jump = size + (k - 1) * d * jump, start - p * jump, jump * s
    try:
        row = receptive_field(model, (1, 1, 3000)).output
    except RuntimeError as error:
        assert "Kernel size can't be greater" in str(error) or "Calculated padded input size" in str(error)  # noqa: PT017
        return
    assert (row.size, row.jump, row.start) == ((size,), (jump,), (start,))
    assert row.centre == (start + Fraction(size - 1, 2),)


def test_networks_of_papers() -> None:
    """Araujo, Norris and Sim 2019: VGG-16 212 before its head, ResNet-18 435, MobileNetV2 491."""
    image = (1, 3, 64, 64)
    vgg = receptive_field(_vgg(), image)
    assert (vgg.output.size, vgg.output.jump) == ((212, 212), (32, 32))
    for build, size in ((networks.resnet18, 435), (networks.mobilenet_v2, 491)):
        model = build()
        found = receptive_field(model, image)
        last = [row for row in found if row.op in ("Conv2d", "add")][-1]
        assert (last.size, last.jump) == ((size, size), (32, 32))
        assert found.output.sees_everything
        assert found.output.jump == (0, 0)
        convext.convert(model)
        assert receptive_field(model, image).output.size == found.output.size


def _vgg() -> nn.Module:
    """The convolutions and poolings of VGG-16, three channels wide."""
    layers: list[nn.Module] = []
    for convolutions in (2, 2, 3, 3, 3):
        layers += [convext.Conv2d(3, 3, 3, padding=1) for _ in range(convolutions)] + [nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def test_alexnets_layers() -> None:
    """AlexNet's last pooling sees 195 places, 32 apart."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 5, padding=2), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)),
        nn.MaxPool2d(3, 2),
    )
    found = receptive_field(model, (1, 3, 224, 224))
    assert [row.size[0] for row in found] == [11, 11, 19, 51, 67, 99, 131, 163, 195]
    assert found.output.jump == (32, 32)
    assert found["0"].start == (-2, -2)
    assert found.output.output_shape == (1, 4, 6, 6)


# Graphs --------------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Down, up, cut and joined: functions of torch and convext between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        low = self.down(C.avg_pool2d(x, 2))
        high = F.interpolate(low, scale_factor=2)
        cut = (x.shape[-1] - high.shape[-1]) // 2
        x = x[..., cut : cut + high.shape[2], cut : cut + high.shape[3]] * 2.0
        return self.up(torch.cat([x, high], dim=1))


def test_a_graph_with_branches_against_gradients() -> None:
    model = UNet()
    found = receptive_field(model, (1, 1, 24, 24))
    assert check_inside(found.output, seen_by_gradients(model, (1, 1, 24, 24)), 24) > 4
    assert found.output.jump == (1, 1)
    assert [row.op for row in found if row.name == "up"] == ["Conv2d"]


class SqueezeExcite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(self.norm(x.permute(0, 2, 3, 1)), (2,)).movedim(-1, 1)


def test_what_sees_everything() -> None:
    for model in (
        SqueezeExcite(),
        nn.GroupNorm(1, 2),
        nn.AdaptiveMaxPool2d(1),
        nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    ):
        output = receptive_field(model, (1, 2, 6, 6)).output
        assert output.sees_everything
        assert output.window(0, clip=True) == ((0, 5), (0, 5))
    assert "statistics" in receptive_field(nn.GroupNorm(1, 2), (1, 2, 6, 6)).output.note
    assert receptive_field(Normalised(), (1, 2, 6, 6)).output.size == (1, 1)
    assert receptive_field(nn.InstanceNorm2d(2, track_running_stats=True), (1, 2, 6, 6)).output.size == (1, 1)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, x.transpose(1, 2))


class UnevenBranches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x, 2) + x[..., : x.shape[-1] // 2]


class Apart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], x.shape[2] // 2, 2)


class Drawn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, -1)


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (Attention(), (1, 2, 6), "no rule for bmm"),
        (Apart(), (1, 2, 6), "takes an axis of places apart"),
        (Drawn(), (1, 2, 6), "no rule for roll"),
        (nn.FractionalMaxPool2d(2, output_size=3), (1, 2, 6, 6), "drawn at random"),
        (nn.Sequential(nn.Unfold(2), nn.ReLU()), (1, 2, 6, 6), "after 0: no rule for Unfold"),
        (nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (2, 6))), (1, 2, 6), "takes an axis of places apart"),
    ],
)
def test_what_is_unknown_says_so(model: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    found = receptive_field(model, shape)
    assert not found.output.known
    assert reason in found.output.note
    assert "unknown" in str(found)
    with pytest.raises(ValueError, match="is unknown"):
        _ = found.output.size


def test_branches_of_different_jumps() -> None:
    model = UnevenBranches()
    found = receptive_field(model, (1, 1, 8)).output
    assert found.jump == (None,)
    assert found.note == "branches with jumps 2 and 1 meet"
    assert [found.window(i) for i in range(4)] == [((w[0], w[1]),) for w in seen_by_gradients(model, (1, 1, 8)) if w]


def test_fractions_are_exact() -> None:
    model = nn.Sequential(nn.ConvTranspose1d(1, 1, 3, 3), nn.Conv1d(1, 1, 2, 2), nn.ConvTranspose1d(1, 1, 1, 4))
    found = receptive_field(model, (1, 1, 9))
    assert [row.jump for row in found] == [(Fraction(1, 3),), (Fraction(2, 3),), (Fraction(1, 6),)]
    assert found.output.window(1) == (None,)  # a gap: a kernel of 1 with stride 4
    assert found["1"].size == (2,)
    assert found["1"].window(0) == ((0, 0),)


def test_unpooling_and_several_inputs() -> None:
    class Unpool(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            y, at = F.max_pool2d(x, 2, return_indices=True)
            return F.max_unpool2d(y, at, 2) * scale

    arguments = (torch.rand(1, 1, 6, 6), torch.rand(1, 1, 6, 6))
    row = receptive_field(Unpool(), arguments).output
    assert (row.size, row.jump) == ((2, 2), (1, 1))
    assert "indices" in row.note
    assert receptive_field(Unpool(), arguments, of=1).output.size == (1, 1)
    with pytest.raises(ValueError, match="of must be"):
        receptive_field(Unpool(), arguments, of=2)


def test_tables_and_json() -> None:
    found = receptive_field(nn.Sequential(nn.Conv2d(1, 1, (3, 5), padding=1), nn.ReLU()), (1, 1, 9, 9))
    lines = str(found).splitlines()
    assert len(lines) == 3
    assert "3x5" in lines[1]
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["centre"] == ["0", "1"]
    assert found["0"].window((2, 3)) == ((1, 3), (2, 6))
    with pytest.raises(KeyError, match="no row named"):
        found["2"]
    with pytest.raises(ValueError, match="place must have 2 entries"):
        found["0"].window((1, 2, 3))


def test_errors() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(RuntimeError, match=r"torch\.fx cannot trace Branching"):
        receptive_field(Branching(), (1, 1, 4))
    with pytest.raises(TypeError, match="model must be"):
        receptive_field(F.relu, (1, 1, 4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="example must be"):
        receptive_field(nn.ReLU(), 4)
    with pytest.raises(ValueError, match="at least one axis"):
        receptive_field(nn.ReLU(), (1, 4))


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    receptive_field(model, (1, 1, 8, 8))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# As gradients weigh it -----------------------------------------------------------------------------------------------


def test_one_uniform_layer_weighs_its_window_evenly() -> None:
    layer = nn.AvgPool2d(5, 1, 2)
    found = effective_receptive_field(layer, (1, 1, 11, 11), samples=2)
    assert found.place == (5, 5)
    assert found.area == 25
    assert found.centre == pytest.approx((5.0, 5.0))
    assert found.deviation == pytest.approx((2**0.5, 2**0.5))
    assert found.radius(1.0) == pytest.approx(8**0.5)
    assert found.radius(0.2) == pytest.approx(1.0)
    assert found.weight.sum().item() == pytest.approx(1.0)
    assert "25 places" in str(found)


def test_stacked_averages_become_gaussian() -> None:
    """n layers of variance 2/3 each: Luo et al., theorem 1. The effective field grows as the square root of n."""
    stacked = nn.Sequential(*[nn.AvgPool1d(3, 1) for _ in range(24)])
    found = effective_receptive_field(stacked, (1, 1, 60), samples=1)
    assert found.deviation == pytest.approx(((24 * 2 / 3) ** 0.5,))
    assert receptive_field(stacked, (1, 1, 60)).output.size == (49,)
    assert found.area < 25


def test_effective_field_lies_in_the_receptive_field() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3))
    window = receptive_field(model, (1, 2, 16, 16)).output.window((2, 3))
    found = effective_receptive_field(model, (1, 2, 16, 16), place=(2, 3))
    rows, columns = found.weight.nonzero(as_tuple=True)
    assert ((rows.min(), rows.max()), (columns.min(), columns.max())) == window
    inner = effective_receptive_field(model, (1, 2, 16, 16), layer="0", place=4, samples=1)
    assert inner.area <= 9
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(KeyError, match="layer must be"):
        effective_receptive_field(model, (1, 2, 16, 16), layer="7")
    with pytest.raises(ValueError, match="place must lie in"):
        effective_receptive_field(model, (1, 2, 16, 16), place=9)
    with pytest.raises(ValueError, match="samples"):
        effective_receptive_field(model, (1, 2, 16, 16), samples=0)


class InPlace(nn.Module):
    """Writes into what it was given, by another name, and returns it by the first."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        z = self.conv(x)
        if self.how == "whole":
            y.add_(z)
        else:
            y[:, :1].add_(z[:, :1])
        return y


def test_what_is_written_in_place_is_followed() -> None:
    assert receptive_field(InPlace("whole"), (1, 2, 9)).output.size == (3,)
    assert "written to in parts" in receptive_field(InPlace("view"), (1, 2, 9)).output.note


class Reductions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.max(x, x.clamp(0.0))
        x = F.normalize(x) + x.std(1, keepdim=True) + x.softmax(1).amax(1, True)
        return x.sum((1,))


def test_reductions_over_channels_leave_places_alone() -> None:
    output = receptive_field(nn.Sequential(nn.Conv2d(2, 2, 3), Reductions()), (1, 2, 9, 9)).output
    assert (output.size, output.output_shape) == ((3, 3), (1, 7, 7))
    assert output.axes == (None, 0, 1)
    assert "no rule for norm" in receptive_field(nn.Sequential(Norm()), (1, 2, 9)).output.note


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(2, 1, keepdim=True)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (convext.GlobalAvgPool(), (1, 2, 1, 1)),
        (convext.GlobalMaxPool(keepdim=False), (1, 2)),
        (convext.KMaxPool(3), (1, 2, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_pools_over_whole_planes_see_everything(pool: nn.Module, shape: tuple[int, ...]) -> None:
    output = receptive_field(nn.Sequential(nn.Conv2d(1, 2, 3), pool), (1, 1, 9, 7)).output
    assert (output.output_shape, output.size, output.start, output.centre) == (shape, (9, 7), (0, 0), (4, 3))
    assert output.sees_everything
    along = receptive_field(nn.Sequential(nn.Conv2d(1, 2, 3), convext.KMaxPool1d(2, 2)), (1, 1, 9, 7)).output
    assert along.size == (9, 3)
