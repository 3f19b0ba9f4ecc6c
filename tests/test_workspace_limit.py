"""The cap on workspaces; and that an algorithm takes no more memory than its stated workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convext
import convext.functional as C
from benchmarks.shapes import ConvProblem
from benchmarks.timing import peak_bytes
from convext import ops
from convext.choice import DIRECTIONS
from tests import calls, numerics


@pytest.fixture(autouse=True)
def no_limit_afterwards() -> Iterator[None]:
    yield
    convext.set_workspace_limit(None)


def _operands() -> tuple[Tensor, Tensor]:
    return torch.randn(1, 32, 20, 20), torch.randn(32, 32, 3, 3)


def _workspaces(direction: str = "forward") -> dict[str, int]:
    verdicts = convext.explain("conv2d", *_operands(), padding=1, direction=direction).verdicts
    return {v.name: v.workspace_bytes for v in verdicts if v.refusal is None}


def test_there_is_no_limit_at_first() -> None:
    assert convext.workspace_limit() is None
    convext.set_workspace_limit(1000)
    assert convext.workspace_limit() == 1000
    convext.set_workspace_limit(None)
    assert convext.workspace_limit() is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_auto_stays_within_the_limit(direction: str) -> None:
    sizes = _workspaces(direction)
    assert max(sizes.values()) > 0
    for limit in (0, *(size - 1 for size in sizes.values() if size), *sizes.values()):
        convext.set_workspace_limit(limit)
        explanation = convext.explain("conv2d", *_operands(), padding=1, direction=direction)
        assert sizes[explanation.chosen] <= limit
        for verdict in explanation.verdicts:
            if verdict.name in sizes:
                assert (verdict.refusal is None) == (sizes[verdict.name] <= limit)


def test_a_named_algorithm_says_what_it_needs_and_may_take() -> None:
    x, w = _operands()
    name, needed = max(_workspaces().items(), key=lambda item: item[1])
    convext.set_workspace_limit(needed - 1)
    said = f"needs a workspace of {needed} bytes, convext.set_workspace_limit allows {needed - 1}"
    with pytest.raises(NotImplementedError, match=f"'{name}' cannot do this call: {said}"):
        C.conv2d(x, w, padding=1, algorithm=name)
    with pytest.raises(NotImplementedError, match=said):
        convext.explain("conv2d", x, w, padding=1, algorithm=name)
    assert said in str(convext.explain("conv2d", x, w, padding=1))
    convext.set_workspace_limit(needed)
    C.conv2d(x, w, padding=1, algorithm=name)


def test_training_within_the_limit() -> None:
    convext.set_workspace_limit(0)
    x, w = (t.requires_grad_() for t in _operands())
    C.conv2d(x, w, padding=1).sum().backward()
    expected = torch.nn.functional.conv2d(x, w, padding=1).sum()
    torch.testing.assert_close(x.grad, torch.autograd.grad(expected, x)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("limit", "error"), [("1", TypeError), (1.5, TypeError), (True, TypeError), (-1, ValueError)])
def test_bad_limits(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="limit must be"):
        convext.set_workspace_limit(limit)
    with pytest.raises(ValueError, match="2\\^63"):
        convext.set_workspace_limit(2**63)


# What is really taken ------------------------------------------------------------------------------------------------

PROBLEMS = (
    ConvProblem("3x3", (24, 32), (40, 36), (3, 3), padding=1, batch=2, bias=True),
    ConvProblem("strided", (16, 24), (41, 38), (5, 5), padding=2, stride=2),
    ConvProblem("wide", (160, 128), (14, 14), (3, 3), padding=1),
    ConvProblem("depthwise", (96, 96), (30, 31), (3, 3), padding=1, groups=96),
    ConvProblem("volume", (8, 12), (8, 9, 10), (3, 3, 3), padding=1),
)
SLACK = 4096
"""What a call may take besides: shapes, lists of tasks, the tensor's own record and alignment."""


def _run(problem: ConvProblem, direction: str, operands: calls.ConvOperands, algorithm: str) -> Tensor:
    x, w, bias, dy = operands.input, operands.weight, operands.bias, operands.grad_output
    options = (*problem.options, algorithm)
    if direction == "forward":
        return ops.conv_forward(x, w, bias, *options)
    if direction == "backward_input":
        return ops.conv_backward_input(dy, w, problem.input_shape, *options)
    return ops.conv_backward_weight(dy, x, problem.weight_shape, *options)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algorithm", calls.CONV_ALGORITHMS)
def test_the_peak_is_the_output_and_the_stated_workspace(problem: ConvProblem, direction: str, algorithm: str) -> None:
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.integers(), channels_last)
        explanation = calls.explain_conv(problem, operands, direction)
        calls.skip_if_refused(explanation, algorithm)
        stated = {v.name: v.workspace_bytes for v in explanation.verdicts}[algorithm]
        for _ in range(2):  # a weight that is kept packed is kept from the second call on
            output = _run(problem, direction, operands, algorithm)
        expected = output.numel() * output.element_size() + stated
        taken = peak_bytes(lambda: _run(problem, direction, operands, algorithm))  # noqa: B023
        assert expected <= taken <= expected + SLACK, f"{taken} bytes taken, {expected} expected, {stated} of workspace"


def _resident(name: str) -> int:
    """VmRSS, what the process holds in memory now, or VmHWM, the most it held since the last reset; in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _process_peak(run: Callable[[], Any]) -> int:
    """The most memory that the process touched at once during the call, whoever allocated it, beyond that before it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = _resident("VmRSS")
    except (OSError, KeyError):
        pytest.skip("this system does not tell a process's peak")
    run()
    return _resident("VmHWM") - before


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algorithm", calls.OTHER_CONV_ALGORITHMS)
def test_no_memory_is_taken_past_the_allocator(direction: str, algorithm: str) -> None:
    """Kernels hold no buffers of their own of any size: 24 MB of input and output, a megabyte of slack."""
    problem = ConvProblem("large", (24, 24), (364, 360), (3, 3), padding=1)
    operands = calls.conv_operands(problem, numerics.integers())
    explanation = calls.explain_conv(problem, operands, direction)
    calls.skip_if_refused(explanation, algorithm)
    stated = {v.name: v.workspace_bytes for v in explanation.verdicts}[algorithm]
    for _ in range(2):
        output = _run(problem, direction, operands, algorithm)
    expected = output.numel() * output.element_size() + stated
    del output
    assert _process_peak(lambda: _run(problem, direction, operands, algorithm)) <= expected + 2**20
