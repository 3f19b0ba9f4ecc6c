"""Receptive fields of stacked layers: python -m examples.receptive_fields

An output of a 3x3 layer sees 3 pixels each way. Of the next, 3 of those, so 5; each further layer adds 2. Strides and
pooling multiply what comes after them, dilations what they are put on. ``convext.analysis.receptive_field`` works it
out from the model; here a photograph checks it: the gradient of one output says which pixels it depends on.

What it depends on is not what it depends on much. Of layers that all weigh alike, pixels in the middle are reached on
many ways and those at the rim on one: the weights are a bell, whose width grows like the square root of the number of
layers, while the field grows like the number itself. Each layer of three equal weights adds a variance of 2/3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import convext
from convext.analysis import effective_receptive_field, receptive_field
from examples import pictures

SIZE = 65


@dataclass(frozen=True)
class Fields:
    sizes: dict[str, tuple[int, int]]
    """Model -> its last layer's receptive field and jump, both from the graph."""
    seen: dict[str, int]
    """Model -> how wide the gradient of one output is on a photograph."""
    deviations: dict[int, float]
    """Number of equal 3x3 layers -> standard deviation of what an output depends on, in pixels."""


def stack(*layers: nn.Module) -> nn.Sequential:
    """The layers with all weights positive, so that nothing cancels."""
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.abs_().add_(0.1)
    return model


def conv(kernel: int, **options: int) -> nn.Module:
    return convext.Conv2d(1, 1, kernel, bias=False, **options)


def models() -> dict[str, nn.Sequential]:
    torch.manual_seed(0)
    return {
        "one 7x7": stack(conv(7)),
        "three 3x3": stack(conv(3), conv(3), conv(3)),
        "three 3x3, strides 2": stack(conv(3, stride=2), conv(3, stride=2), conv(3, stride=2)),
        "three 3x3, dilations 1 2 4": stack(conv(3), conv(3, dilation=2), conv(3, dilation=4)),
        "3x3, pool 2x2, twice": stack(conv(3), convext.AvgPool2d(2), conv(3), convext.AvgPool2d(2)),
    }


def width_seen(model: nn.Module, image: Tensor) -> int:
    """How many columns of the image the middle output depends on."""
    x = image.clone().requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad(y[0, 0, y.shape[2] // 2, y.shape[3] // 2], x)
    columns = gradient[0, 0].abs().sum(0).nonzero().flatten()
    return int(columns.max() - columns.min()) + 1


def spread(depths: Sequence[int]) -> dict[int, float]:
    """Of stacks of 3x3 layers whose weights are all 1/9."""
    found = {}
    for depth in depths:
        model = stack(*(conv(3) for _ in range(depth)))
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(1 / 9)
        field = effective_receptive_field(model, torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64), samples=1)
        found[depth] = field.deviation[0]
    return found


def main(folder: Path | None = None) -> Fields:
    image = pictures.grey(pictures.photograph("china"))[:, :, 200 : 200 + SIZE, 300 : 300 + SIZE].contiguous()
    sizes, seen = {}, {}
    print("model                         sees   jump   on a photograph")
    for name, model in models().items():
        row = receptive_field(model, image).output
        sizes[name] = row.size[0], int(row.jump[0] or 0)
        seen[name] = width_seen(model, image)
        print(f"{name:<27} {sizes[name][0]:>6} {sizes[name][1]:>6} {seen[name]:>17}")
    deviations = spread((1, 3, 6, 12, 24))
    print("equal 3x3 layers   sees   of which, as a standard deviation")
    for depth, deviation in deviations.items():
        print(f"{depth:>16} {2 * depth + 1:>6} {deviation:>35.2f}")
    return Fields(sizes, seen, deviations)


if __name__ == "__main__":
    main(pictures.OUTPUTS)
