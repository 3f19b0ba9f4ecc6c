"""No kernel reads outside its inputs: they end, or begin, where the memory of the process does.

Beside each input lies a page that nobody may touch, so that a read of even one element too far stops the process with
a signal. A forked child takes the risk and says before each call what it is about to do.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from convext import ops
from convext.choice import DIRECTIONS
from tests import calls, cases, numerics

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages with Linux's mprotect")

Step = tuple[str, Callable[[], object]]
sides = pytest.mark.parametrize("at_end", [True, False], ids=["after", "before"])
of_two_dtypes = pytest.mark.parametrize("of", [torch.float32, torch.bfloat16], ids=numerics.name_of)


def fenced(tensor: Tensor, at_end: bool) -> Tensor:
    """A copy, of the same strides, whose last (or first) element touches a forbidden page."""
    page, size = mmap.PAGESIZE, tensor.numel() * tensor.element_size()
    inner = -(-size // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    first = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    for fence in (first, first + page + inner):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), page, 0) == 0
    offset = page + (inner - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def run_in_child(steps: Iterator[Step]) -> tuple[int, str]:
    """The exit status of a fork that takes all steps, and the step it took last."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            for name, step in steps:
                os.write(write, (name + "\n").encode())
                step()
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as lines:
        said = lines.read().splitlines()
    return os.waitpid(child, 0)[1], said[-1] if said else "nothing"


def check(steps: Iterator[Step]) -> None:
    status, last = run_in_child(steps)
    assert status == 0, f"stopped with status {status} in {last}"


def conv_steps(algorithm: str, of: torch.dtype, at_end: bool) -> Iterator[Step]:
    for problem in cases.CONVOLUTIONS:
        for channels_last in calls.layouts(problem.spatial):
            operands = calls.conv_operands(problem, numerics.integers(of), channels_last)
            if calls.refusal(calls.explain_conv(problem, operands), algorithm) is not None:
                continue
            there = operands.map(lambda t: fenced(t, at_end))
            x, w, bias, dy = there.input, there.weight, there.bias, there.grad_output
            options = (*problem.options, algorithm)
            runs: list[Callable[[], object]] = [
                lambda x=x, w=w, bias=bias, o=options: ops.conv_forward(x, w, bias, *o),
                lambda dy=dy, w=w, size=x.shape, o=options: ops.conv_backward_input(dy, w, size, *o),
                lambda dy=dy, x=x, size=w.shape, o=options: ops.conv_backward_weight(dy, x, size, *o),
            ]
            for direction, run in zip(DIRECTIONS, runs, strict=True):
                yield f"{problem}, {direction}, channels_last={channels_last}", run
            yield f"{problem}, bias, channels_last={channels_last}", lambda dy=dy: ops.conv_backward_bias(dy)


def pool_steps(algorithm: str, of: torch.dtype, at_end: bool) -> Iterator[Step]:
    for problem in cases.POOLS:
        for channels_last in calls.layouts(problem.spatial):
            x = problem.operand(numerics.integers(of), channels_last)
            if calls.refusal(calls.explain_pool(problem, x), algorithm) is not None:
                continue
            window, size = problem.window, problem.input_shape
            name = f"{problem}, channels_last={channels_last}"
            there = fenced(x, at_end)
            if problem.average:
                rest = (*window, *calls.average_arguments(problem), algorithm)
                dy = fenced(ops.avg_pool(x, *rest), at_end)
                yield f"average {name}", lambda there=there, rest=rest: ops.avg_pool(there, *rest)
                yield f"its gradient, {name}", lambda dy=dy, s=size, rest=rest: ops.avg_pool_backward(dy, s, *rest)
            else:
                dy, places = (fenced(t, at_end) for t in ops.max_pool(x, *window, True, algorithm))
                yield f"maximum {name}", lambda there=there, w=window: ops.max_pool(there, *w, True, algorithm)
                yield (
                    f"its gradient, {name}",
                    lambda dy=dy, at=places, s=size, w=window: ops.max_pool_backward(dy, at, s, *w, algorithm),
                )
                yield f"its indices, {name}", lambda at=places, s=size, w=window: ops.max_pool_indices(at, s, *w)


def test_the_fence_stops_a_read_too_far() -> None:
    def one_too_far(at_end: bool) -> Callable[[], object]:
        x = fenced(torch.zeros(8), at_end)
        return lambda: ctypes.c_float.from_address(x.data_ptr() + (32 if at_end else -4)).value

    for at_end in (True, False):
        status, last = run_in_child(iter([("inside", lambda: None), ("outside", one_too_far(at_end))]))
        assert os.WIFSIGNALED(status)
        assert last == "outside"


@sides
@of_two_dtypes
@calls.variants(calls.CONV_ALGORITHMS)
def test_convolutions_read_their_inputs_only(algorithm: str, isa: str, of: torch.dtype, at_end: bool) -> None:
    check(conv_steps(algorithm, of, at_end))


@sides
@of_two_dtypes
@calls.variants(calls.POOL_ALGORITHMS)
def test_pooling_reads_its_inputs_only(algorithm: str, isa: str, of: torch.dtype, at_end: bool) -> None:
    check(pool_steps(algorithm, of, at_end))
