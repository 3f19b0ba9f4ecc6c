"""A kernel learned from edges: python -m examples.learned_kernel

Given a picture and its edges, which kernel made them? A convolution layer starts from zeros and follows the gradient of
the squared difference. The loss is a bowl with one bottom, and the kernel is found, to the last digit that matters.

How fast depends on the picture alone. The nine pixels of a window resemble each other, so the bowl is a valley: steep
along the sum of the kernel, nearly flat along what tells neighbours apart. Its curvatures are the eigenvalues of the
9 x 9 matrix of products of window places; with steps of 1 / largest, the error along the flattest shrinks by the factor
1 - smallest / largest a step. Taking the mean away, or the blur (by Laplace's kernel), makes the valley rounder. The
kernel is the same, since convolutions may be exchanged: edges of the filtered picture are the filtered edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import convext
from convext.functional import conv2d
from examples import pictures
from examples.edges import SOBEL

LAPLACE = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]]).double().view(1, 1, 3, 3)
PRECISION = 1e-7
MOST_STEPS = 20_000


@dataclass(frozen=True)
class Learned:
    kernel: Tensor
    """(1, 1, 3, 3)"""
    steps: int
    condition: float
    """Largest curvature / smallest."""
    losses: list[float]


def curvatures(image: Tensor) -> Tensor:
    """(1, 1, h, w) -> (9,): of the loss along its main directions, in ascending order."""
    windows = torch.nn.functional.unfold(image, 3)[0]
    return torch.linalg.eigvalsh(windows @ windows.T / windows.shape[1])


def learn(image: Tensor, edges: Tensor) -> Learned:
    """Gradient descent until the mean squared difference is PRECISION^2 of the edges' mean square."""
    smallest, *_, largest = curvatures(image).tolist()
    layer = convext.Conv2d(1, 1, 3, bias=False, dtype=image.dtype)
    torch.nn.init.zeros_(layer.weight)
    enough = PRECISION**2 * edges.square().mean().item()
    losses: list[float] = []
    while len(losses) < MOST_STEPS:
        loss = (layer(image) - edges).square().mean()
        losses.append(loss.item())
        if losses[-1] <= enough:
            break
        (gradient,) = torch.autograd.grad(loss / 2, layer.weight)
        with torch.no_grad():
            layer.weight -= gradient / largest
    return Learned(layer.weight.detach(), len(losses) - 1, largest / smallest, losses)


@pictures.one_thread()
def main(folder: Path | None = None) -> dict[str, Learned]:
    image = pictures.grey(pictures.photograph("china"))[:, :, 360:424, 440:504] / 255
    centred = image - image.mean()
    prepared = {"as it is": image, "mean taken away": centred, "blur taken away": conv2d(centred, LAPLACE)}
    results = {}
    print("picture           largest / smallest curvature   steps   the kernel, rounded")
    for name, picture in prepared.items():
        found = results[name] = learn(picture, conv2d(picture, SOBEL))
        rounded = found.kernel[0, 0].round().int().tolist()
        print(f"{name:<17} {found.condition:>28.0f} {found.steps:>7}   {rounded}")
    worst = max((found.kernel - SOBEL).abs().max().item() for found in results.values())
    print(f"No number of any of the three is further than {worst:.0e} from Sobel's.")
    if folder is not None:
        shown = {name: found.kernel[0, 0] for name, found in results.items()}
        pictures.save({"Sobel": SOBEL[0, 0], **shown}, folder / "learned_kernel.png")
    return results


if __name__ == "__main__":
    main(pictures.OUTPUTS)
