"""What padding and stride do: python -m examples.padding_and_stride

A window of k places fits n - k + 1 times into n. Padding makes up for the loss; what it shows there decides how the rim
looks. Zeros are black: a mean over a window that reaches past the rim comes out darker. The other modes show the
picture itself: mirrored with its edge (symmetric) or about it (reflect), its edge again and again (replicate), or its
far end (circular).

A stride of s keeps every s-th answer of each row and column, and does not compute the others:

    floor((n + before + after - dilation (k - 1) - 1) / stride) + 1

What lies between is lost, and what was finer than the stride comes back as something else: stripes one pixel wide, seen
at every second pixel, are a plain surface. A blur before the stride averages them instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convext.functional import conv2d
from convext.padding import PADDING_MODES
from examples import pictures

MEAN = torch.full((1, 1, 15, 15), 1 / 225, dtype=torch.float64)
SIZES = (("valid", 1), (7, 1), ("same", 1), ("valid", 2), ("same", 2), (((14, 0), (14, 0)), 1))


@dataclass(frozen=True)
class Padded:
    sizes: dict[tuple[object, int], tuple[int, int]]
    """(padding, stride) -> (h, w) of the answer for a 15x15 kernel."""
    rims: dict[str, float]
    """Padding mode -> mean brightness of the blurred picture's outermost pixels."""
    rim: float
    """The same of the picture itself."""
    whole: Tensor
    strided: Tensor
    stripes: Tensor
    """Stripes of black and white, seen at every second pixel; ``blurred``: averaged over 2x2 before."""
    blurred: Tensor


def rim(image: Tensor) -> float:
    """Mean of the outermost pixels."""
    inside = torch.zeros_like(image, dtype=torch.bool)
    inside[..., 1:-1, 1:-1] = True
    return image[~inside].mean().item()


def main(folder: Path | None = None) -> Padded:
    image = pictures.grey(pictures.photograph("flower"))
    sizes: dict[tuple[object, int], tuple[int, int]] = {}
    print(f"A picture of {tuple(image.shape[2:])} under a 15x15 kernel:")
    for padding, stride in SIZES:
        height, width = conv2d(image, MEAN, padding=padding, stride=stride).shape[2:]
        sizes[padding, stride] = height, width
        print(f"  padding={padding!s:<20} stride={stride}  ->  {height} x {width}")

    blurred = {mode: conv2d(image, MEAN, padding="same", padding_mode=mode) for mode in PADDING_MODES}
    rims = {mode: rim(answer) for mode, answer in blurred.items()}
    print(f"The rim's mean brightness is {rim(image):.1f}; after a mean over 15x15 with padding of")
    print("  " + ", ".join(f"{mode} {value:.1f}" for mode, value in rims.items()))

    whole, strided = conv2d(image, MEAN), conv2d(image, MEAN, stride=2)
    print(f"Stride 2 is every second answer: {torch.equal(whole[..., ::2, ::2], strided)}.")
    fine = 255.0 * (torch.arange(32) % 2).double().expand(1, 1, 32, 32)
    point, square = torch.ones(1, 1, 1, 1).double(), torch.full((1, 1, 2, 2), 0.25).double()
    stripes, averaged = conv2d(fine, point, stride=2), conv2d(fine, square, stride=2)
    print(f"Stripes of 0 and 255 at stride 2: all {stripes.mean():.0f}; averaged before: all {averaged.mean():.1f}.")
    if folder is not None:
        small = pictures.photograph("flower")[..., ::8, ::8].contiguous()
        copy = torch.ones(3, 1, 1, 1, dtype=torch.float64)  # a kernel that shows what padding shows
        shown = {mode: conv2d(small, copy, groups=3, padding=24, padding_mode=mode)[0] for mode in PADDING_MODES}
        pictures.save(shown, folder / "padding.png")
    return Padded(sizes, rims, rim(image), whole, strided, stripes, averaged)


if __name__ == "__main__":
    main(pictures.OUTPUTS)
