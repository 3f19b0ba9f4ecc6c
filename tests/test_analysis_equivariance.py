"""convext.analysis.equivariance_error: 0 where it must be, and not where it must not."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import convext
from convext.analysis import equivariance_error


def circular(stride: int = 1) -> nn.Module:
    return nn.Sequential(
        convext.Conv2d(2, 4, 3, stride, padding=1, padding_mode="circular"),
        nn.ReLU(),
        convext.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
    ).double()


@pytest.mark.parametrize("shift", [1, 3, -2, (0, 5)])
def test_circular_convolutions_move_with_their_input(shift: int | tuple[int, int]) -> None:
    assert equivariance_error(circular(), (2, 2, 12, 12), shift) < 1e-14


@pytest.mark.parametrize(
    "layer", [nn.MaxPool2d(2), convext.AvgPool2d(2), nn.Conv2d(2, 2, 1, 2), convext.MaxPool2d(1, 2)]
)
def test_a_stride_of_two_aliases_odd_shifts(layer: nn.Module) -> None:
    for mode in ("circular", "zeros"):
        assert equivariance_error(layer, (1, 2, 16, 16), 2, mode=mode) < 1e-6
        assert equivariance_error(layer, (1, 2, 16, 16), (4, -2), mode=mode) < 1e-6
        assert equivariance_error(layer, (1, 2, 16, 16), 1, mode=mode) > 0.05
        assert equivariance_error(layer, (1, 2, 16, 16), (0, 3), mode=mode) > 0.05


def test_an_average_before_the_stride_lessens_the_aliasing() -> None:
    """Zhang 2019: max pooling of stride 1, blurred, then taken at every second place."""
    x = torch.rand(1, 2, 32, 32, dtype=torch.float64)
    blurred = nn.Sequential(nn.MaxPool2d(2, 1), nn.AvgPool2d(3, 2)).double()
    plain = nn.MaxPool2d(2)
    assert equivariance_error(blurred, x, 1, mode="zeros") < 0.5 * equivariance_error(plain, x, 1, mode="zeros")


def test_zero_padding_shows_at_the_border_only() -> None:
    layer = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1)).double()
    assert equivariance_error(layer, (1, 2, 12, 12), 1) > 1e-3
    assert equivariance_error(layer, (1, 2, 12, 12), 1, interior=True) < 1e-14
    assert equivariance_error(layer, (1, 2, 12, 12), (2, -3), mode="zeros") < 1e-14
    assert equivariance_error(layer, (1, 2, 12, 12), 1, mode="zeros", interior=False) > 1e-3


def test_upsampling_moves_further_than_its_input() -> None:
    up = nn.Sequential(nn.ConvTranspose1d(1, 2, 3, 2, 1, output_padding=1), nn.Tanh()).double()
    assert equivariance_error(up, (1, 1, 20), 1, mode="zeros") < 1e-14
    assert equivariance_error(nn.Upsample(scale_factor=3), (1, 1, 20), 2) == 0


def test_global_pooling_is_invariant() -> None:
    model = nn.Sequential(circular(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)).double()
    assert equivariance_error(model, (2, 2, 8, 8), 3) < 1e-13


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2] if x.sum() > -1e9 else x


def test_a_jump_given_needs_no_graph() -> None:
    x = torch.rand(1, 1, 16)
    assert equivariance_error(Untraceable(), x, 2, jump=2) == 0
    assert equivariance_error(Untraceable(), x, 1, jump=(Fraction(2),)) > 0
    with pytest.raises(RuntimeError, match=r"torch\.fx"):
        equivariance_error(Untraceable(), x, 2)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="mode must be"):
        equivariance_error(circular(), (1, 2, 8, 8), mode="reflect")
    with pytest.raises(ValueError, match="take a larger example"):
        equivariance_error(nn.Conv1d(1, 1, 9, padding=4), (1, 1, 9), mode="zeros")
    with pytest.raises(ValueError, match="jump must be given"):
        equivariance_error(nn.Unfold(2), (1, 1, 9, 9))
    with pytest.raises(ValueError, match="jump must be 1 numbers"):
        equivariance_error(nn.ReLU(), (1, 1, 9), jump=(1, 2))
    with pytest.raises(ValueError, match=r"must be \(n, c"):
        equivariance_error(nn.ReLU(), (1, 9))
    assert equivariance_error(nn.Threshold(2.0, 0.0), torch.zeros(1, 1, 4)) == 0
