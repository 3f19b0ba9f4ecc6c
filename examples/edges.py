"""Edges by a fixed kernel: python -m examples.edges

Sobel's kernel weighs what lies to the right of a pixel against what lies to the left. Its nine numbers sum to zero, so
where nothing changes the answer is zero, however bright the place is. Where brightness climbs to the right the answer
is positive, where it falls, negative. The kernel turned by its diagonal does the same for up and down, and the two
together say how steep the picture is at each pixel, whatever the direction.

The kernel is an outer product of two lines, (1, 2, 1) down and (-1, 0, 1) across: a little blur one way, a difference
the other. So two convolutions of 3 products do the work of one of 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convext.functional import conv2d
from examples import pictures

BLUR, DIFFERENCE = torch.tensor([1.0, 2.0, 1.0]).double(), torch.tensor([-1.0, 0.0, 1.0]).double()
SOBEL = torch.outer(BLUR, DIFFERENCE).view(1, 1, 3, 3)
"""(1, 1, 3, 3): rows -1 0 1, -2 0 2, -1 0 1."""


@dataclass(frozen=True)
class Edges:
    image: Tensor
    """(1, 1, h, w), as all that follow, which are two pixels smaller either way."""
    across: Tensor
    down: Tensor
    steepness: Tensor
    separable: Tensor
    brighter: Tensor
    """``across`` once more, of the image made brighter by 50."""
    share: float
    """Of pixels as steep as a step of 50 or more."""


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """What changes across, and what changes down."""
    return conv2d(image, SOBEL), conv2d(image, SOBEL.transpose(2, 3))


def main(folder: Path | None = None) -> Edges:
    image = pictures.grey(pictures.photograph("china"))
    across, down = edges(image)
    steepness = across.hypot(down)
    separable = conv2d(conv2d(image, BLUR.view(1, 1, 3, 1)), DIFFERENCE.view(1, 1, 1, 3))
    brighter, _ = edges(image + 50)
    step = 50 * BLUR.sum()  # a vertical step of 50 gives 50 times the blur's sum
    share = (steepness >= step).double().mean().item()

    print(f"Sobel's kernel, {SOBEL[0, 0].int().tolist()}, sums to {SOBEL.sum():.0f}.")
    print(
        f"The picture has {tuple(image.shape[2:])} pixels, its edges {tuple(across.shape[2:])}: no window past the rim."
    )
    print(f"Made brighter by 50, its edges are the same: {torch.equal(across, brighter)}.")
    print(f"Down, then across: 3 + 3 products for 9, and the same numbers: {torch.equal(across, separable)}.")
    at = divmod(int(steepness.argmax()), steepness.shape[3])
    print(f"Steepest is pixel {at} of the answer; {share:.1%} of pixels are at a step of 50 or more.")
    if folder is not None:
        shown = {"a photograph": image, "across": across, "down": down, "steepness": steepness}
        pictures.save({title: picture[0, 0] for title, picture in shown.items()}, folder / "edges.png")
    return Edges(image, across, down, steepness, separable, brighter, share)


if __name__ == "__main__":
    main(pictures.OUTPUTS)
