"""A model trained by two processes, each on half of the images: python -m examples.data_parallel

DistributedDataParallel keeps a whole model on each process and averages the gradients. FSDP2 (fully_shard) keeps a part
of every parameter on each process and gathers a layer's when it is needed. Both take convext's layers as they take
torch's. The numbers here are small and dyadic, in float64: nothing is rounded, so both end at the parameters of one
process that trains on all images, equal to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import convext
from examples import two_processes

STEPS = 2


class Trained(NamedTuple):
    replicated_equal: bool
    sharded_equal: bool
    kept: int
    """Numbers of the parameters that one process keeps under FSDP2; ``all``: of the whole model."""
    all: int


def model() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, 2, 1), nn.AvgPool2d(2)
    ).double()
    convext.convert(net, "direct")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    return net


def train(net: nn.Module, images: Tensor, targets: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=1 / 16)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (net(images) * targets).sum().div(len(images)).backward()
        optimizer.step()


def numbers(net: nn.Module) -> list[Tensor]:
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]


def part() -> Trained:
    """What each process does."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(-3, 4, (4, 2, 16, 16), generator=generator).double()
    targets = torch.randint(-1, 2, (4, 8, 2, 2), generator=generator).double()
    mine = [t.chunk(dist.get_world_size())[dist.get_rank()] for t in (images, targets)]

    alone, replicated, sharded = model(), model(), model()
    train(alone, images, targets)
    train(DistributedDataParallel(replicated), *mine)
    for layer in (sharded[0], sharded[3], sharded):
        fully_shard(layer)
    train(sharded, *mine)

    def equal(net: nn.Module) -> bool:
        return all(torch.equal(a, b) for a, b in zip(numbers(net), numbers(alone), strict=True))

    kept = sum(p.to_local().numel() for p in sharded.parameters() if isinstance(p, DTensor))
    return Trained(equal(replicated), equal(sharded), kept, sum(p.numel() for p in alone.parameters()))


def main() -> Trained:
    found: Trained = two_processes.run(part)
    print(f"After {STEPS} steps the parameters are those of one process:")
    print(f"  DistributedDataParallel: {found.replicated_equal}")
    print(f"  FSDP2: {found.sharded_equal}; the first process keeps {found.kept} of {found.all} numbers")
    return found


if __name__ == "__main__":
    main()
