"""Convolution against cross-correlation: python -m examples.convolution

What networks call convolution lays the kernel on the picture as it is: that is cross-correlation. True convolution
turns it by half a turn first; ``flip_kernel=True`` does that. For a learned kernel it does not matter: it learns the
turned numbers. For a given one it does:

* a single bright pixel comes out as the kernel itself by convolution, upside down by cross-correlation;
* convolution is multiplication of polynomials: it may be exchanged and grouped at will, (x * a) * b = x * (a * b), so
  two filters in a row can be multiplied out to one; cross-correlation is neither commutative nor associative;
* cross-correlation is a search: it is largest where the picture looks like the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convext.functional import conv2d
from examples import pictures
from examples.edges import SOBEL

ARROW = torch.tensor([[0.0, 2.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 4.0]]).double().view(1, 1, 3, 3)
"""Not its own mirror image in any direction."""
FULL = 2
"""The padding that lets every window of a 3x3 kernel in that sees any pixel at all."""


@dataclass(frozen=True)
class Convolutions:
    impulse: dict[str, Tensor]
    """(3, 3): what a single bright pixel becomes, by "convolution" and by "cross-correlation"."""
    grouped: Tensor
    multiplied: Tensor
    exchanged: bool
    exchanged_correlation: bool
    polynomial: Tensor
    found: tuple[int, int]
    """Where a patch of the picture was found again, and where it was taken from."""
    taken: tuple[int, int]


def main(folder: Path | None = None) -> Convolutions:
    pixel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    pixel[..., 1, 1] = 1
    impulse = {
        "convolution": conv2d(pixel, ARROW, padding=1, flip_kernel=True)[0, 0],
        "cross-correlation": conv2d(pixel, ARROW, padding=1)[0, 0],
    }
    print(f"A single bright pixel under the kernel {ARROW[0, 0].int().tolist()}:")
    for name, answer in impulse.items():
        print(f"  {name:<17} {answer.int().tolist()}")

    def star(x: Tensor, kernel: Tensor) -> Tensor:
        """x * kernel, all places that see anything."""
        return conv2d(x, kernel, padding=FULL, flip_kernel=True)

    image = pictures.grey(pictures.photograph("china"))
    grouped, multiplied = (
        star(star(image, SOBEL), ARROW),
        conv2d(image, star(SOBEL, ARROW), padding=4, flip_kernel=True),
    )
    print(f"Sobel, then arrow, is one 5x5 kernel, Sobel * arrow: {torch.equal(grouped, multiplied)}.")
    exchanged = torch.equal(star(SOBEL, ARROW), star(ARROW, SOBEL))
    correlations = (conv2d(SOBEL, ARROW, padding=FULL), conv2d(ARROW, SOBEL, padding=FULL))
    exchanged_correlation = torch.equal(*correlations)
    print(f"May be exchanged: convolution {exchanged}, cross-correlation {exchanged_correlation}.")
    first, second = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([4.0, 5.0]).double()
    polynomial = star(first.view(1, 1, 1, 3), second.view(1, 1, 1, 2))[0, 0, FULL, 1:-1]
    print(f"(1 + 2x + 3xx)(4 + 5x) has the coefficients {polynomial.int().tolist()}.")

    taken = (200, 300)
    patch = image[..., 200:216, 300:316]
    patch = patch - patch.mean()
    likeness = conv2d(image, patch.contiguous())
    loudness = conv2d(image.square(), torch.ones_like(patch)) - conv2d(image, torch.ones_like(patch)).square() / 256
    found = divmod(int((likeness / loudness.clamp(min=1).sqrt()).argmax()), likeness.shape[3])
    print(f"A patch of 16x16 from {taken} is found by cross-correlation at {found}.")
    if folder is not None:
        shown = {"kernel": ARROW[0, 0], **impulse}
        pictures.save(shown, folder / "convolution.png")
    return Convolutions(impulse, grouped, multiplied, exchanged, exchanged_correlation, polynomial, found, taken)


if __name__ == "__main__":
    main(pictures.OUTPUTS)
