"""Channels, and kernels of 1x1: python -m examples.channels

A picture has three numbers per pixel. A kernel has a plane for each, and an output channel is the sum over all of them:
one number per window, whatever the number of channels. Several kernels make several output channels.

A 1x1 kernel looks at one pixel only. What remains is the sum over channels: a matrix, applied to the colour of every
pixel alike. Two in a row are one, with the product of the matrices; an invertible one can be undone.

Groups forbid most of those sums. With a group per channel (depthwise) channels do not meet at all, and a 1x1 after it
lets them: together they have far fewer numbers than a full kernel, and a full kernel of rank one per pair is what they
can express.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convext.functional import conv2d
from examples import pictures
from examples.edges import SOBEL

OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]).double()
"""Brightness, red against green, yellow against blue: how the eye sorts colours. Rows are output channels."""


@dataclass(frozen=True)
class Channels:
    summed: Tensor
    planes: list[Tensor]
    """Of each input channel: what ``summed`` is the sum of."""
    colours: Tensor
    """(1, 3, h, w): brightness, red against green, yellow against blue."""
    back: Tensor
    image: Tensor
    twice: Tensor
    """Two 1x1 kernels, one after the other; ``once``: the one kernel that is both."""
    once: Tensor
    separable: Tensor
    full: Tensor
    parameters: dict[str, int]


def main(folder: Path | None = None) -> Channels:
    image = pictures.photograph("flower")[:, :, 100:300, 200:500].contiguous()
    kernel = SOBEL.expand(1, 3, 3, 3) * torch.tensor([1.0, 2.0, 3.0]).double().view(1, 3, 1, 1)
    summed = conv2d(image, kernel)
    planes = [conv2d(image[:, c : c + 1], kernel[:, c : c + 1]) for c in range(3)]
    print(f"A kernel of {tuple(kernel.shape)} on a picture of {tuple(image.shape)} gives {tuple(summed.shape)}:")
    print(f"  the sum of three answers of one channel each: {torch.equal(summed, sum(planes))}.")

    as_kernel = OPPONENT.view(3, 3, 1, 1)
    colours = conv2d(image, as_kernel)
    by_hand = torch.einsum("kc,nchw->nkhw", OPPONENT, image)
    back = conv2d(colours, torch.linalg.inv(OPPONENT).view(3, 3, 1, 1))
    print(f"1x1 is a matrix for every pixel's colour: {torch.equal(colours, by_hand)}; its inverse brings the picture")
    print(f"  back to {(back - image).abs().max():.0e} of 255.")
    swap = torch.eye(3, dtype=torch.float64)[[2, 0, 1]]
    twice = conv2d(colours, swap.view(3, 3, 1, 1))
    once = conv2d(image, (swap @ OPPONENT).view(3, 3, 1, 1))
    print(f"Two in a row are one, with the product of the matrices: {torch.equal(twice, once)}.")

    depthwise = torch.cat([SOBEL, SOBEL.transpose(2, 3), SOBEL + SOBEL.transpose(2, 3)])
    separable = conv2d(conv2d(image, depthwise, groups=3), as_kernel)
    full = conv2d(image, as_kernel * depthwise.view(1, 3, 3, 3))
    wide = 256
    parameters = {"full 3x3": wide * wide * 9, "depthwise 3x3, then 1x1": wide * 9 + wide * wide}
    print(f"Depthwise 3x3, then 1x1, is a full 3x3 with the kernels' products: {torch.equal(separable, full)}.")
    print(f"With {wide} channels: " + ", ".join(f"{name}: {count} numbers" for name, count in parameters.items()) + ".")
    if folder is not None:
        names = ("brightness", "red against green", "yellow against blue")
        shown = {name: colours[0, k] for k, name in enumerate(names)}
        pictures.save({"a photograph": image[0], **shown}, folder / "channels.png")
    return Channels(summed, planes, colours, back, image, twice, once, separable, full, parameters)


if __name__ == "__main__":
    main(pictures.OUTPUTS)
