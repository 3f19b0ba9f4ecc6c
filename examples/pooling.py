"""Pooling and small shifts: python -m examples.pooling

Where exactly a stroke lies should not matter for which digit it is. Pooling lets go of it: the greatest number of a
window stays the same while it moves within the window, so a picture moved by a pixel changes the pooled map less than
it changes the map itself. It is not nothing, though: moved out of its window, the greatest number is in the next one.
What is exact is the stride: moved by two pixels, what is pooled in steps of two has moved by one.

The average changes a little wherever the stroke moves. Pooling over the whole map (global) forgets the place entirely:
moved within the map, nothing changes. The k greatest of a map, in the order of their places, keep a little more than
the greatest alone: which came first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convext.functional import avg_pool2d, conv2d, global_avg_pool, global_max_pool, k_max_pool, max_pool2d
from examples import pictures
from examples.edges import SOBEL

MARGIN = 4
"""Blank pixels put round the digits, so that nothing is lost when they move."""
K = 3


@dataclass(frozen=True)
class Pooling:
    changes: dict[str, float]
    """Kind of pooling -> how much one pixel changes what it gives, as a share of what it gives (root mean squares)."""
    unchanged: dict[str, float]
    """Kind of pooling -> the share of numbers other than zero, before or after, that stay as they are."""
    two_pixels: bool
    """Whether two pixels are one place of what is pooled in steps of two, for the maximum and the average."""
    largest: Tensor
    """(n, K): of each digit's map, in the order of their places."""
    largest_moved: Tensor


def moved(image: Tensor, pixels: int) -> Tensor:
    """To the right; what leaves comes in again on the left."""
    return image.roll(pixels, dims=3)


def main(folder: Path | None = None) -> Pooling:
    digits, _ = pictures.digits()
    digits = torch.nn.functional.pad(digits, [MARGIN] * 4)
    features, after = (conv2d(x, SOBEL, padding=1).relu() for x in (digits, moved(digits, 1)))
    kinds = {
        "the map itself": lambda x: x,
        "maximum over 2x2": lambda x: max_pool2d(x, 2),
        "maximum over 4x4": lambda x: max_pool2d(x, 4),
        "average over 2x2": lambda x: avg_pool2d(x, 2),
        "average over 4x4": lambda x: avg_pool2d(x, 4),
        "maximum of all": global_max_pool,
        "average of all": global_avg_pool,
        f"the {K} greatest of all": lambda x: k_max_pool(x, K),
    }
    changes, unchanged = {}, {}
    print(f"Upright strokes of {len(digits)} digits, moved by one pixel:     change   numbers unchanged")
    for name, pool in kinds.items():
        before, behind = pool(features), pool(after)
        changes[name] = ((before - behind).norm() / before.norm()).item()
        either = (before != 0) | (behind != 0)
        unchanged[name] = (before == behind)[either].double().mean().item()
        print(f"  {name:<46} {changes[name]:>10.0%} {unchanged[name]:>19.0%}")
    two = conv2d(moved(digits, 2), SOBEL, padding=1).relu()
    two_pixels = all(torch.equal(pool(two, 2), moved(pool(features, 2), 1)) for pool in (max_pool2d, avg_pool2d))
    print(f"Moved by two pixels, what is pooled over 2x2 has moved by one place: {two_pixels}.")
    if folder is not None:
        shown = {"a digit's strokes": features, "moved": after, "maximum": max_pool2d(features, 2)}
        shown |= {"moved, maximum": max_pool2d(after, 2)}
        pictures.save({title: maps[0, 0] for title, maps in shown.items()}, folder / "pooling.png")
    return Pooling(changes, unchanged, two_pixels, k_max_pool(features, K)[:, 0], k_max_pool(after, K)[:, 0])


if __name__ == "__main__":
    main(pictures.OUTPUTS)
