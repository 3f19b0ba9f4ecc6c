"""One convolution, its channels shared out to two processes: python -m examples.sharded_channels

A convolution sums over input channels, for each output channel anew. So the output channels can be shared out: each
process has some kernels and computes their maps. And so can the input channels: each process has some of the picture's
channels and that part of every kernel, and the results are parts of a sum, which somebody must add up. DTensor keeps
account of it: Shard(1) says that dimension 1 is shared out, Partial() that the parts are still to be added. Two layers
after each other, the first by outputs, the second by inputs, need no exchange between them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import convext.distributed  # noqa: F401  teaches DTensor the operators
from convext.functional import conv2d
from examples import two_processes


class Sharded(NamedTuple):
    hidden: str
    """Where the maps between the layers lie; ``output``: where the result does."""
    output: str
    kept: tuple[int, ...]
    """Shape of the first layer's weight on one process."""
    equal: bool
    gradients_equal: bool


def part() -> Sharded:
    """What each process does."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 12, 12), (8, 3, 3, 3), (4, 8, 3, 3))
    image, first, second = (torch.randint(-3, 4, shape, generator=generator).double() for shape in shapes)

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    x = distribute_tensor(image, mesh, [Replicate()])
    w1 = distribute_tensor(first, mesh, [Shard(0)]).requires_grad_()
    w2 = distribute_tensor(second, mesh, [Shard(1)]).requires_grad_()
    hidden = conv2d(x, w1).relu()
    output = conv2d(hidden, w2)
    output.full_tensor().sum().backward()

    w1_whole, w2_whole = first.clone().requires_grad_(), second.clone().requires_grad_()
    expected = conv2d(conv2d(image, w1_whole).relu(), w2_whole)
    expected.sum().backward()
    pairs = ((w1, w1_whole), (w2, w2_whole))
    return Sharded(
        str(hidden.placements[0]),
        str(output.placements[0]),
        tuple(w1.to_local().shape),
        torch.equal(output.full_tensor(), expected),
        all(torch.equal(a.grad.full_tensor(), b.grad) for a, b in pairs),
    )


def main() -> Sharded:
    found: Sharded = two_processes.run(part)
    print(f"The first layer's weight is (8, 3, 3, 3), one process has {found.kept}.")
    print(f"Between the layers: {found.hidden}; after the second: {found.output}.")
    print(f"Added up it is the convolution of one process: {found.equal}; gradients too: {found.gradients_equal}.")
    return found


if __name__ == "__main__":
    main()
