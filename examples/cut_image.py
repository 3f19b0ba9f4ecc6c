"""One image, cut over two processes: python -m examples.cut_image

An image that is too large for one device is cut into rows. At the cut a window sees rows of both sides, so before each
layer neighbours send each other the rows that they need (a halo), and in the backward pass the gradients of these rows
go home. Everything else is the layer as it is. A small U-Net, down and up again, gives the same whole numbers, cut or
not; with halos left out, rows near the cut come out wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

import convext
from convext.distributed import gather_spatial, scatter_spatial, spatial_shard
from examples import two_processes


class Net(nn.Module):
    """Down by pooling, up by a transposed convolution, and a sum of both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2)
        self.deep, self.up = nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, 2)
        self.out = nn.Conv2d(4, 1, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randint(-1, 2, p.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        high = self.into(x).relu()
        result: Tensor = self.out(high + self.up(self.deep(self.down(high)).relu()))
        return result


class CutImage(NamedTuple):
    layers: int
    equal: bool
    gradients_equal: bool
    wrong_rows: list[int]
    """Where the result is another if each process runs the plain network on its rows alone."""


def part() -> CutImage:
    """What each process does."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(-3, 4, (1, 1, 32, 24), generator=generator).double()
    plain, cut = Net().double(), Net().double()
    convext.convert(plain)
    expected = plain(image)
    expected.square().sum().backward()

    report = spatial_shard(cut)
    rows = scatter_spatial(image)
    output = cut(rows)
    output.square().sum().backward()  # of these rows; gradients of parameters are summed over all
    whole = gather_spatial(output)

    alone = gather_spatial(plain(rows))
    wrong = (alone != expected).any(3).flatten().nonzero().flatten().tolist()
    pairs = zip(cut.parameters(), plain.parameters(), strict=True)
    same = all(a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad) for a, b in pairs)
    assert dist.get_world_size() == two_processes.RANKS
    return CutImage(len(report.sharded), torch.equal(whole, expected), same, wrong)


def main() -> CutImage:
    found: CutImage = two_processes.run(part)
    print(f"{found.layers} layers exchange halos.")
    print(f"The gathered output is that of one process: {found.equal}; gradients too: {found.gradients_equal}.")
    print(f"Without halos these rows of 32 are wrong: {found.wrong_rows}.")
    return found


if __name__ == "__main__":
    main()
