"""Draws the pictures of the README and the pages under docs/: python -m docs.pictures, or make docs-pictures.

They go to docs/images/, each below 200 kB. Those of the examples are drawn by the examples themselves; those of costs
and of the roofline are measured on the machine at hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import convext
from convext import viz
from examples import (
    channels,
    convolution,
    digits,
    edges,
    learned_kernel,
    matrix,
    padding_and_stride,
    pictures,
    pooling,
)

IMAGES = Path(__file__).resolve().parent / "images"
MOST_BYTES = 200_000
EXAMPLES = (channels, convolution, edges, learned_kernel, matrix, padding_and_stride, pooling)
EPOCHS = 6


def trained() -> tuple[torch.nn.Module, torch.Tensor]:
    """A network that reads digits, and a digit it has not seen."""
    data = digits.load_digits()
    learner = digits.Learner("convext", digits.lenet(convext), epochs=EPOCHS)
    digits.train([learner], data)
    return learner.network, data.test_images[0]


def small_network() -> torch.nn.Module:
    """Three layers whose receptive fields are easy to see on a photograph."""
    return torch.nn.Sequential(
        convext.Conv2d(3, 8, 7, stride=2, padding=3),
        convext.MaxPool2d(3, stride=2, padding=1),
        convext.Conv2d(8, 8, 3, padding=2, dilation=2),
    )


def costly_network() -> torch.nn.Module:
    """Every kind of layer that costs differently: a stem, dense, depthwise, pointwise, pooling."""
    return torch.nn.Sequential(
        convext.Conv2d(3, 64, 7, stride=2, padding=3),
        convext.MaxPool2d(3, stride=2, padding=1),
        convext.Conv2d(64, 64, 3, padding=1),
        convext.Conv2d(64, 128, 3, stride=2, padding=1),
        convext.Conv2d(128, 128, 3, padding=1, groups=128),
        convext.Conv2d(128, 256, 1),
        convext.Conv2d(256, 256, 5, padding=2, groups=8),
        convext.AvgPool2d(2),
        convext.Conv2d(256, 512, 1),
        convext.Conv2d(512, 512, 3, padding=1),
    )


def draw(folder: Path) -> None:
    """All of them."""
    for example in EXAMPLES:
        example.main(folder)
    network, digit = trained()
    viz.kernels(network[0], folder / "kernels.png")
    viz.feature_maps(network, digit, "1", folder / "feature_maps.png")
    torch.manual_seed(0)
    photograph = pictures.photograph("china")[:, :, 180:276, 270:414].float()
    viz.receptive_field(
        small_network(), photograph, layers=("0", "1", "2"), path=folder / "receptive_field.png", effective=True
    )
    viz.sliding_window((6, 6), (3, 3), stride=2, padding=1, path=folder / "window_stride.gif")
    viz.sliding_window((7, 7), (3, 3), dilation=2, path=folder / "window_dilation.gif")
    viz.sliding_window((4, 4), (3, 3), padding=1, padding_mode="reflect", path=folder / "window_reflect.gif")
    viz.sliding_window(
        (3, 3), (3, 3), stride=2, padding=1, transposed=True, output_padding=1, path=folder / "window_transposed.gif"
    )
    summary = convext.summary(costly_network(), (1, 3, 224, 224))
    viz.cost_bars(summary, path=folder / "cost_bars.png")
    viz.roofline(summary, path=folder / "model_roofline.png")


def main() -> int:
    with pictures.one_thread():
        draw(IMAGES)
    large = [
        path.name for path in IMAGES.iterdir() if path.stat().st_size > MOST_BYTES and "benchmark" not in path.name
    ]
    if large:
        print(f"larger than {MOST_BYTES} bytes: {', '.join(large)}", file=sys.stderr)
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())
