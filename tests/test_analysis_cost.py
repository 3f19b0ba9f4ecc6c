"""convext.analysis.count, winograd_tile and stack_vs_single: the numbers of papers, exactly."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convext
import convext.functional as C
from benchmarks import networks
from convext.analysis import count, stack_vs_single, winograd_tile


def test_vgg16() -> None:
    """Simonyan and Zisserman 2014, configuration D."""
    with torch.device("meta"):
        whole = networks.vgg16()
    assert sum(p.numel() for p in whole.parameters()) == 138_357_544
    convolutional = whole[:31]
    convolutional.to_empty(device="cpu")
    found = count(convolutional, (1, 3, 32, 32))  # a 49th of 224 x 224
    assert found.parameters == 14_714_688
    assert found.multiply_adds * 49 == 15_346_630_656
    assert found["0"].parameters == 1792
    assert found["0"].multiply_adds == 32 * 32 * 64 * 27
    assert found.comparisons == 3 * sum(c * (32 >> i) ** 2 for i, c in enumerate((64, 128, 256, 512, 512), start=1))


def test_resnet18() -> None:
    found = count(networks.resnet18(), (1, 3, 224, 224))
    assert found.parameters == 11_689_512
    assert found.multiply_adds == 1_814_073_344
    stem, pool = found["0.0"], found["1"]
    assert (stem.output_shape, stem.parameters, stem.multiply_adds) == ((1, 64, 112, 112), 9408, 118_013_952)
    assert stem.bytes_moved == 4 * (3 * 224**2 + 9408 + 64 * 112**2)
    assert stem.intensity == pytest.approx(2 * 118_013_952 / stem.bytes_moved)
    assert (pool.comparisons, pool.multiply_adds) == (64 * 56 * 56 * 8, 0)
    assert [row.op for row in found].count("add") == 8
    assert found["11"].bytes_moved == 0  # a view


def test_alexnets_first_layer() -> None:
    row = count(nn.Conv2d(3, 96, 11, 4, 2), (1, 3, 224, 224)).rows[0]
    assert row.output_shape == (1, 96, 55, 55)
    assert row.parameters == 96 * (3 * 121 + 1) == 34_944
    assert row.multiply_adds == 105_415_200


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_counts_depend_neither_on_modes_nor_on_conversion(training: bool, grad: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(True), nn.MaxPool2d(2))
    model.train(training)
    with torch.set_grad_enabled(grad):
        before = count(model, torch.rand(2, 2, 8, 8, requires_grad=grad))
        convext.convert(model)
        after = count(model, (2, 2, 8, 8))
    assert before.as_dict() == after.as_dict()
    assert model.training is training
    assert all(m.training is training for m in model)
    assert not [row.ours for row in before if row.ours]
    assert [row.ours for row in after] == [True, True, False, True]
    assert before.multiply_adds == 2 * 64 * 3 * 18
    assert before.rows[2].bytes_moved == 2 * 4 * 2 * 3 * 64  # in place: read and written


CONVOLUTIONS: list[tuple[nn.Module, tuple[int, ...], int]] = [
    (nn.Conv1d(4, 6, 3, groups=2), (1, 4, 10), 8 * 6 * 2 * 3),
    (nn.Conv2d(4, 4, 3, groups=4, stride=2), (3, 4, 9, 9), 3 * 16 * 4 * 9),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (1, 2, 5, 5), 25 * 4 * 9),
    (convext.Conv2d(2, 2, 3, padding=1, padding_mode="symmetric"), (1, 2, 5, 5), 25 * 4 * 9),
    (convext.Conv3d(2, 3, 3), (1, 2, 5, 5, 5), 27 * 6 * 27),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5), 2 * 25 * 4 * 3 * 9),
    (convext.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5), 2 * 25 * 4 * 3 * 9),
    (nn.Linear(7, 5), (2, 3, 7), 2 * 3 * 35),
]


@pytest.mark.parametrize(("layer", "shape", "expected"), CONVOLUTIONS, ids=lambda v: type(v).__name__)
def test_multiply_adds(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert count(layer, shape).multiply_adds == expected
    unbatched = shape[0] == 1 and count(layer, torch.rand(shape[1:])).multiply_adds
    assert unbatched in (False, expected)


class Functions(nn.Module):
    """Nothing but functions."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Identity()
        self.weight = nn.Parameter(torch.rand(3, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(x)
        y = F.conv2d(x, self.weight, padding=1) + C.conv2d(x, self.weight, padding="same")
        y = C.avg_pool2d(y, 2)
        y = F.adaptive_avg_pool2d(y, 3)
        y = F.adaptive_max_pool2d(y, (3, 2))
        rows = y.flatten(2)
        return rows @ rows.transpose(1, 2)


def test_functions_between_layers() -> None:
    found = count(Functions(), (1, 2, 8, 8))
    names = ["part", "conv2d", "conv2d", "add", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "matmul"]
    assert [row.name for row in found] == names
    theirs, ours = (row for row in found if row.op == "conv2d")
    assert theirs.multiply_adds == ours.multiply_adds == 64 * 54
    assert (theirs.ours, ours.ours) == (False, True)
    assert theirs.parameters == ours.parameters == found.parameters == 54
    assert found["avg_pool2d"].additions == 3 * 16 * 3
    assert found["adaptive_avg_pool2d"].additions == 3 * (6 * 6 - 9)  # windows of 2 of 4 places
    assert found["adaptive_max_pool2d"].comparisons == 3 * (3 * 4 - 6)
    assert found["matmul"].multiply_adds == 9 * 6
    assert found["add"].bytes_moved == 3 * 4 * 3 * 64


def test_attention() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.rand(2, 5, 8)
    found = count(layer, (x, x, x))
    assert found.multiply_adds == 4 * 2 * 5 * 64 + 2 * 2 * 25 * 8
    lstm = count(nn.LSTM(3, 3), torch.rand(4, 2, 3))
    assert "not counted" in lstm.rows[0].note


def test_a_parameter_used_twice_counts_once() -> None:
    layer = nn.Conv2d(2, 2, 1)
    found = count(nn.Sequential(layer, layer), (1, 2, 3, 3))
    assert [row.parameters for row in found] == [6, 6]
    assert found.parameters == 6


# Algorithms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "tile", "multiplications"),
    [
        (nn.Conv2d(8, 8, 3, padding=1), (1, 8, 32, 32), "F(4x4, 3x3)", 64 * 64 * 36),
        (nn.Conv2d(8, 8, 3, padding=1), (1, 8, 4, 4), "F(2x2, 3x3)", 64 * 4 * 16),
        (nn.Conv2d(8, 8, 5, padding=2), (1, 8, 6, 6), "F(2x2, 5x5)", 64 * 9 * 36),
        (nn.Conv2d(8, 8, 5, padding=2), (1, 8, 28, 28), "F(2x4, 5x5)", 64 * 14 * 7 * 48),
        (nn.Conv2d(65, 1, 5, padding=2), (1, 65, 28, 28), "F(2x2, 5x5)", 65 * 14 * 14 * 36),
        (nn.Conv2d(8, 8, 2), (1, 8, 13, 13), "F(4x4, 2x2)", 64 * 9 * 25),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), (1, 8, 24, 24), "F(4x4, 2x2) of 4 phases", 64 * 9 * 81),
        (nn.Conv2d(8, 8, 5, stride=2, padding=2), (1, 8, 24, 24), "F(4x4, 3x3) of 4 phases", 64 * 9 * 121),
        (nn.Conv2d(8, 8, 4, stride=2, padding=1), (1, 8, 24, 24), "F(4x4, 2x2) of 4 phases", 64 * 9 * 100),
        (nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), (1, 8, 12, 12), "F(4x4, 2x2) of 4 phases", 64 * 9 * 100),
        (nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1), (1, 8, 12, 12), "F(4x4, 2x2) of 4 phases", 64 * 9 * 81),
        (convext.Conv2d(8, 8, 5, padding=2, algorithm="auto:fast"), (1, 8, 6, 6), "F(4x4, 5x5)", 64 * 4 * 64),
        (nn.Conv1d(8, 8, 3, padding=1), (1, 8, 10), "F(4, 3)", 64 * 3 * 6),
        (nn.Conv1d(8, 8, 5, padding=2), (1, 8, 10), "F(2, 5)", 64 * 5 * 6),
        (nn.Conv3d(2, 2, 3, padding=1), (1, 2, 5, 16, 16), "F(4x4, 3x3)", 4 * 3 * 5 * 16 * 36),
        (nn.ConvTranspose2d(8, 8, 3, padding=1), (1, 8, 32, 32), "F(4x4, 3x3)", 64 * 64 * 36),
    ],
)
def test_winograds_saving(layer: nn.Module, shape: Any, tile: str, multiplications: int) -> None:
    row = count(layer, shape).rows[0]
    costs = {cost.name: cost for cost in row.algorithms}
    assert list(costs) == convext.algorithms("conv2d")
    assert (costs["winograd"].tile, costs["winograd"].multiplications) == (tile, multiplications)
    assert row.winograd_saving == row.multiply_adds / multiplications
    assert {costs[name].multiplications for name in ("naive", "direct", "im2col")} == {row.multiply_adds}


def test_the_columns_of_im2col() -> None:
    row = count(nn.Conv2d(6, 4, 3, groups=2), (2, 6, 7, 7)).rows[0]
    (im2col,) = [cost for cost in row.algorithms if cost.name == "im2col"]
    assert im2col.column_bytes == 2 * 25 * 6 * 9 * 4


def test_a_strided_layer_has_no_saving() -> None:
    found = count(nn.Conv2d(4, 4, 3, stride=3), (1, 4, 9, 9))
    (winograd,) = [cost for cost in found.rows[0].algorithms if cost.name == "winograd"]
    assert (winograd.multiplications, winograd.refusal) == (None, "the stride must be 1")
    assert found.rows[0].winograd_saving is None
    assert found.multiplications == found.multiply_adds


def test_there_is_a_tile_where_winograd_can() -> None:
    for r, s, stride in itertools.product((1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 4, 5, 6, 7), (1, 2)):
        explanation = convext.explain("conv2d", torch.empty(1, 4, 12, 12), torch.empty(4, 4, r, s), stride=stride)
        (verdict,) = [v for v in explanation.verdicts if v.name == "winograd"]
        assert (winograd_tile((r, s), (12, 12), stride=stride) is not None) == (verdict.refusal is None), (r, s, stride)


@pytest.mark.parametrize("size", [2, 4, 6, 8, 12, 13, 20, 33])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_tile_is_the_one_that_the_packed_weight_shows(size: int, kernel: int) -> None:
    """A packed weight has one matrix for each point of the tile, a few lines of cache apart."""
    channels = 64
    weight, x = torch.rand(channels, channels, kernel, kernel), torch.rand(1, channels, size, size)
    convext.clear_packed_weights()
    with torch.no_grad():
        for _ in range(3):
            C.conv2d(x, weight, padding="same", algorithm="winograd")
    points = convext.packed_weight_bytes() / (4 * channels * channels)
    convext.clear_packed_weights()
    tile = winograd_tile((kernel, kernel), (size, size), terms=channels)
    assert tile is not None
    expected = (tile[0] + kernel - 1) * (tile[1] + kernel - 1)
    assert expected <= points < 1.6 * expected


# Stacks, text and errors ---------------------------------------------------------------------------------------------


def test_three_3x3_for_one_7x7() -> None:
    found = stack_vs_single(7, 3, channels=8, input_size=10)
    assert (found.layers, found.single.parameters, found.stacked.parameters) == (3, 49 * 64, 27 * 64)
    assert found.single.multiply_adds == 49 * 64 * 100
    assert found.stacked.multiply_adds == 27 * 64 * 100
    assert found.single_field == found.stacked_field == (7, 7)
    assert found.same_field
    assert "1.81" in str(found)
    volumes = stack_vs_single(5, 3, channels=2, input_size=4, spatial=3, bias=True)
    assert (volumes.single.parameters, volumes.stacked.parameters) == (4 * 125 + 2, 2 * (4 * 27 + 2))


@pytest.mark.parametrize("options", [{"kernel_size": 6}, {"small": 1}, {"kernel_size": 2}, {"spatial": 4}])
def test_stacks_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"stack_vs_single: .* got"):
        stack_vs_single(**{"kernel_size": 7, "small": 3, **options})


def test_table_and_json() -> None:
    found = count(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), (1, 3, 32, 32))
    lines = str(found).splitlines()
    assert len(lines) == 4
    assert "221,184" in lines[1]
    assert lines[-1].startswith("total")
    assert json.loads(json.dumps(found.as_dict()))["multiply_adds"] == 32 * 32 * 8 * 27
    with pytest.raises(KeyError, match="no row named 'x'"):
        found["x"]


def test_errors() -> None:
    with pytest.raises(TypeError, match="example must be"):
        count(nn.ReLU(), "image")
    with pytest.raises(TypeError, match="model must be"):
        count(F.relu, (1, 2))  # type: ignore[arg-type]
