"""convext.analysis.output_size: the sizes of papers, and those that layers have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import convext
from convext.analysis import output_size


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((227, 11, 4), {}, (55,)),  # AlexNet's first, without padding
        ((224, 11, 4, 2), {}, (55,)),  # ... as in torchvision
        (((224, 224), 7, 2, 3), {}, (112, 112)),  # ResNet's stem
        ((112, (3, 3), 2, 1), {}, (56, 56)),
        ((55, 3, 2), {"ceil_mode": True}, (27,)),
        ((112, 3, 2), {"ceil_mode": True}, (56,)),  # GoogLeNet
        ((112, 3, 2), {}, (55,)),
        ((5, 2, 2, 0, 1), {"ceil_mode": True}, (3,)),
        ((9, 3, 2, "same"), {}, (5,)),
        ((9, 3, 2, "same_lower"), {}, (5,)),
        ((9, 3, 2, "valid"), {}, (4,)),
        (((9, 7), 3, 1, ((1, 0), (2, 2))), {}, (8, 9)),
        (((9, 7), 3, 1, (0, 1), (2, 1)), {}, (5, 7)),
        (((4, 5, 6), (1, 2, 3), None), {}, (4, 2, 2)),
        ((28, 4, 2, 1), {"transposed": True}, (56,)),  # DCGAN
        ((28, 3, 2, 1), {"transposed": True, "output_padding": 1}, (56,)),
        ((28, 3, 2, "same"), {"transposed": True}, (56,)),
    ],
)
def test_sizes_of_arguments(arguments: Any, options: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert output_size(*arguments, **options) == expected


LAYERS: list[tuple[torch.nn.Module, tuple[int, ...]]] = [
    (torch.nn.Conv1d(1, 1, 3, 2, 1), (10,)),
    (torch.nn.Conv2d(1, 1, (3, 5), padding="same"), (9, 8)),
    (convext.Conv2d(1, 1, 3, 2, padding="same", padding_mode="symmetric"), (9, 8)),
    (convext.Conv3d(1, 1, 2, padding=((0, 1), (1, 1), (0, 0))), (4, 5, 6)),
    (torch.nn.ConvTranspose2d(1, 1, 3, 2, 1, output_padding=(1, 0)), (5, 6)),
    (convext.ConvTranspose1d(1, 1, 5, 3, padding="same"), (7,)),
    (torch.nn.MaxPool2d(3, 2, 1, ceil_mode=True), (8, 9)),
    (convext.MaxPool1d(3, dilation=2), (11,)),
    (convext.AvgPool2d(2, padding="same", dilation=2), (7, 8)),
    (torch.nn.AvgPool3d(2, ceil_mode=True), (5, 4, 5)),
    (torch.nn.LPPool2d(2, 3, stride=2, ceil_mode=True), (8, 8)),
    (torch.nn.AdaptiveAvgPool2d((None, 3)), (8, 9)),
    (torch.nn.AdaptiveMaxPool1d(4), (9,)),
    (torch.nn.Upsample(scale_factor=1.5), (5, 6)),
    (torch.nn.Upsample(size=7), (5,)),
]


@pytest.mark.parametrize(("layer", "places"), LAYERS, ids=lambda v: type(v).__name__)
def test_sizes_of_layers_are_those_they_make(layer: torch.nn.Module, places: tuple[int, ...]) -> None:
    with torch.no_grad():
        made = layer(torch.rand(1, 1, *places)).shape[2:]
    assert output_size(layer, places) == tuple(made)


def test_unpooling_undoes_the_size() -> None:
    assert output_size(torch.nn.MaxUnpool2d(2), (4, 5)) == (8, 10)


def test_one_size_for_all_dimensions() -> None:
    assert output_size(torch.nn.Conv2d(1, 1, 3), 8) == (6, 6)
    assert output_size(8, (3, 2)) == (6, 7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("8", 3), TypeError, "input_size must be"),
        (((8, 8, 8, 8), 3), ValueError, "1 to 3 spatial sizes"),
        ((-1, 3), ValueError, "must not be negative"),
        ((8, None), TypeError, "kernel_size must be"),
        ((5, 7), RuntimeError, "Kernel size can't be greater"),
        ((5, 3, 0), RuntimeError, "non-positive stride"),
        ((torch.nn.Linear(2, 2), 4), TypeError, "the layer must be"),
        ((torch.nn.Conv2d(1, 1, 3), (4,)), ValueError, "must have 2 spatial sizes"),
        ((torch.nn.Conv2d(1, 1, 3), 4, 5), TypeError, "takes input_size and nothing else"),
    ],
)
def test_what_is_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        output_size(*arguments)


def test_options_that_contradict() -> None:
    with pytest.raises(ValueError, match="ceil_mode"):
        output_size(8, 3, transposed=True, ceil_mode=True)
    with pytest.raises(ValueError, match="output_padding"):
        output_size(8, 3, output_padding=1)
    with pytest.raises(RuntimeError, match="would be empty"):
        output_size(1, 1, 1, 2, transposed=True)


def test_importing_convext_leaves_the_analyses_for_later() -> None:
    code = "import sys, convext; assert 'convext.analysis' not in sys.modules; convext.analysis.output_size(4, 2)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, timeout=300)
