"""What convext says of itself: algorithms, explain, the log, the command line, the instruction set asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import convext
import convext.functional as C
from convext import _C
from convext.__main__ import main
from convext.choice import CONVOLUTIONS, DIRECTIONS, POOLS

ROOT = Path(convext.__file__).parent.parent


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, in the repository's root, with these variables set."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# algorithms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", CONVOLUTIONS + POOLS)
def test_naive_closes_every_table(op: str) -> None:
    names = convext.algorithms(op)
    assert names[-1] == "naive"
    assert len(set(names)) == len(names)
    assert convext.algorithms(op, torch.device("cpu")) == names


def test_the_defaults_are_convolution_on_the_cpu() -> None:
    assert convext.algorithms() == convext.algorithms("conv2d", "cpu")


def test_without_cuda_kernels_there_are_no_cuda_algorithms() -> None:
    assert bool(convext.algorithms("conv2d", "cuda")) == _C.built_with_cuda()
    assert bool(convext.algorithms("max_pool2d", "cuda")) == _C.built_with_cuda()


@pytest.mark.parametrize(("op", "device"), [("conv4d", "cpu"), ("linear", "cpu"), ("conv2d", "meta")])
def test_an_unknown_operation_or_device(op: str, device: str) -> None:
    with pytest.raises(ValueError):
        convext.algorithms(op, device)


# explain -------------------------------------------------------------------------------------------------------------


def call_of(op: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a small call."""
    spatial = int(op[-2])
    x = torch.zeros(1, 2, *[6] * spatial)
    if op.startswith("adaptive"):
        return (x, 4), {}
    if op in POOLS:
        return (x, 2), {"stride": 1}
    return (x, torch.zeros(2, 2, *[3] * spatial)), {"stride": 2}


@pytest.mark.parametrize("op", CONVOLUTIONS + POOLS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_algorithm_has_a_verdict(op: str, direction: str) -> None:
    args, kwargs = call_of(op)
    said = convext.explain(op, *args, **kwargs, direction=direction)
    assert [v.name for v in said.verdicts] == convext.algorithms(op)
    chosen = {v.name: v for v in said.verdicts}[said.chosen]
    assert chosen.refusal is None
    assert said.asked == "auto"
    if "transpose" in op:  # its forward runs the kernel that is a convolution's gradient of the input
        direction = {"forward": "backward_input", "backward_input": "forward"}.get(direction, direction)
    assert said.direction == direction
    assert all(v.workspace_bytes >= 0 for v in said.verdicts)
    assert all(v.workspace_bytes == 0 for v in said.verdicts if v.refusal is not None)
    text = str(said)
    assert text.splitlines()[0] == f"{said.call}, {direction}: {said.chosen}"
    for verdict, line in zip(said.verdicts, text.splitlines()[1:], strict=True):
        assert line.split()[0] == verdict.name
        if verdict.refusal is not None:
            assert f"cannot: {verdict.refusal}" in line
        else:
            assert ("runs" if verdict.name == said.chosen else "could run") in line


LEFT_TO_AUTO = {("conv_transpose2d", "winograd")}
"""A gradient that an algorithm lacks, of a convolution that it can do, is left to "auto": a transposed one is such."""


@pytest.mark.parametrize("op", CONVOLUTIONS + POOLS)
def test_a_verdict_is_what_the_call_does(op: str) -> None:
    """An algorithm that could run runs; one that cannot raises NotImplementedError with the same words."""
    args, kwargs = call_of(op)
    for verdict in convext.explain(op, *args, **kwargs).verdicts:
        if verdict.refusal is None:
            getattr(C, op)(*args, **kwargs, algorithm=verdict.name)
            assert convext.explain(op, *args, **kwargs, algorithm=verdict.name).chosen == verdict.name
            continue
        if (op, verdict.name) in LEFT_TO_AUTO:
            getattr(C, op)(*args, **kwargs, algorithm=verdict.name)
            said = convext.explain(op, *args, **kwargs, algorithm=verdict.name)
            assert said.chosen == convext.explain(op, *args, **kwargs).chosen
            continue
        with pytest.raises(NotImplementedError) as raised:
            getattr(C, op)(*args, **kwargs, algorithm=verdict.name)
        assert verdict.refusal in str(raised.value)
        with pytest.raises(NotImplementedError) as explained:
            convext.explain(op, *args, **kwargs, algorithm=verdict.name)
        assert verdict.refusal in str(explained.value)


def test_a_named_algorithm_is_said_to_be_named() -> None:
    said = convext.explain("conv2d", torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), algorithm="naive")
    assert str(said).splitlines()[0].endswith("forward: naive (named)")
    assert said.asked == said.chosen == "naive"


LAYERS = [
    convext.Conv1d(2, 3, 3, padding="same", stride=2),
    convext.Conv2d(2, 4, 3, padding=((1, 0), (0, 1)), padding_mode="symmetric", groups=2, flip_kernel=True),
    convext.Conv3d(2, 3, 2, dilation=2),
    convext.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1, padding=1),
    convext.MaxPool1d(3, 2, 1),
    convext.MaxPool2d(3, dilation=2, ceil_mode=True),
    convext.AvgPool2d(2, dilation=2),
    convext.AvgPool3d(2, padding="same"),
    torch.nn.Conv2d(2, 3, 3),
    torch.nn.ConvTranspose1d(2, 3, 3),
    torch.nn.MaxPool2d(2),
    torch.nn.AvgPool1d(2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{type(layer).__module__.split('.')[0]}-{layer}")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_layer_is_explained_as_its_call(layer: torch.nn.Module, direction: str) -> None:
    """Batched and unbatched; the text has the output's shape, or for a transposed layer maps it back to its input's."""
    spatial = next(d for d in (1, 2, 3) if f"{d}d" in type(layer).__name__)
    x = torch.zeros(3, 2, *[8] * spatial)
    said = convext.explain(layer, x, direction=direction)
    alone = convext.explain(layer, x[0], direction=direction)
    output = list(layer(x).shape)
    mapped = (output, list(x.shape)) if "Transpose" in type(layer).__name__ else (list(x.shape), output)
    assert f"{mapped[0]} -> {mapped[1]}" in said.call
    assert alone.chosen == said.chosen
    assert [v.refusal for v in alone.verdicts] == [v.refusal for v in said.verdicts]


def test_the_forward_of_a_transposed_layer_is_the_gradient_of_an_input() -> None:
    layer, x = convext.ConvTranspose2d(2, 3, 3), torch.zeros(1, 2, 5, 5)
    assert convext.explain(layer, x).direction == "backward_input"
    assert convext.explain(layer, x, direction="backward_input").direction == "forward"
    assert convext.explain(layer, x, direction="backward_weight").direction == "backward_weight"


def test_the_call_says_its_geometry() -> None:
    x, w = torch.zeros(1, 4, 6, 7), torch.zeros(6, 2, 3, 2)
    said = convext.explain("conv2d", x, w, stride=(2, 1), padding=((1, 0), (0, 2)), groups=2, flip_kernel=True)
    for part in ("conv2d [1, 4, 6, 7] -> [1, 6, 3, 8]", "kernel [3, 2]", "stride [2, 1]", "groups 2", "flipped"):
        assert part in said.call
    assert "contiguous" in said.call
    laid_out = convext.explain("conv2d", x.to(memory_format=torch.channels_last), w, groups=2)
    assert laid_out.call.endswith("channels_last")


def test_the_choice_does_not_depend_on_the_batch() -> None:
    w = torch.zeros(8, 8, 3, 3)
    said = [convext.explain("conv2d", torch.empty(n, 8, 20, 20), w).chosen for n in (1, 2, 64)]
    assert len(set(said)) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("conv5d", torch.zeros(1)), ValueError),
        ((torch.nn.Linear(2, 2), torch.zeros(1, 2)), TypeError),
        (("conv2d", torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2, 2)), RuntimeError),
        (("conv2d", torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 5, 5)), RuntimeError),
        (("max_pool2d", torch.zeros(1, 2, 4, 4), 0), RuntimeError),
    ],
    ids=["unknown_function", "other_layer", "channels", "kernel_too_large", "window_0"],
)
def test_bad_questions(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        convext.explain(*arguments)


def test_a_bad_direction_or_algorithm() -> None:
    x, w = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="direction must be one of"):
        convext.explain("conv2d", x, w, direction="sideways")
    with pytest.raises(ValueError, match="algorithm must be one of 'auto', "):
        convext.explain("conv2d", x, w, algorithm="fastest")
    with pytest.raises(ValueError, match="algorithm must be one of"):
        C.conv2d(x, w, algorithm="fastest")


# The command line and the environment --------------------------------------------------------------------------------


@cache
def info_under(isa: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "convext", "info", CONVEXT_ISA=isa)


def test_info() -> None:
    said = info_under(_C.available_isas()[0])
    assert said.returncode == 0, said.stderr
    rows = dict(line.split("  ", 1) for line in said.stdout.strip().splitlines())
    rows = {key.strip(): value.strip() for key, value in rows.items()}
    assert rows["convext"].startswith(convext.__version__)
    assert rows["torch"] == torch.__version__
    assert rows["instruction set"].split()[0] == _C.available_isas()[0]
    assert int(rows["threads"]) >= 1
    assert rows["convolution, cpu"] == ", ".join(convext.algorithms("conv2d"))
    assert rows["pooling, cpu"] == ", ".join(convext.algorithms("max_pool2d"))
    assert ("built without CUDA kernels" in rows["cuda"]) != _C.built_with_cuda()
    assert rows["compiler"]


@pytest.mark.parametrize("arguments", [(), ("unknown",)], ids=["nothing", "unknown"])
def test_the_command_line_says_how_it_is_used(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["convext", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "usage: python -m convext" in capsys.readouterr().err


@pytest.mark.parametrize("name", _C.available_isas())
def test_the_environment_chooses_the_instruction_set(name: str) -> None:
    said = info_under(name)
    assert said.returncode == 0, said.stderr
    assert f"{name} (CONVEXT_ISA={name}) of {', '.join(_C.available_isas())}" in said.stdout


def test_an_instruction_set_that_does_not_exist() -> None:
    """set_isa refuses it; the environment variable is passed over with a word, so that import convext never fails."""
    with pytest.raises(ValueError, match="'mmx' is not available"):
        _C.set_isa("mmx")
    said = run_python("-m", "convext", "info", CONVEXT_ISA="mmx")
    assert said.returncode == 0
    assert "instruction set 'mmx' is not available here" in said.stderr
    assert f"of {', '.join(_C.available_isas())}" in said.stdout


CALLS = """
import torch, convext, convext.functional as C
x, w = torch.zeros(1, 2, 5, 5, requires_grad=True), torch.zeros(3, 2, 2, 2, requires_grad=True)
C.conv2d(x, w, algorithm="naive").sum().backward()
C.max_pool2d(x, 2)
C.avg_pool2d(x, 2, algorithm="naive")
"""


def test_the_log_names_call_algorithm_and_what_was_asked() -> None:
    """CONVEXT_LOG=debug writes one line per kernel."""
    said = run_python("-c", CALLS, CONVEXT_LOG="debug")
    assert said.returncode == 0, said.stderr
    lines = [line for line in said.stderr.splitlines() if line.startswith("convext: ")]
    call = convext.explain("conv2d", torch.zeros(1, 2, 5, 5), torch.zeros(3, 2, 2, 2)).call
    for direction in DIRECTIONS:
        assert f"convext: {call} float32 {direction}: naive (asked: naive)" in lines
    pools = [line for line in lines if "pool2d" in line]
    chosen = convext.explain("max_pool2d", torch.zeros(1, 2, 5, 5), 2).chosen
    assert pools[0].endswith(f"max_pool: {chosen} (asked: auto)")
    assert pools[1].endswith("avg_pool: naive (asked: naive)")
    assert len(lines) == 5


def test_without_being_asked_nothing_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    if os.environ.get("CONVEXT_LOG") == "debug":
        pytest.skip("CONVEXT_LOG=debug is set for this run")
    exec(CALLS, {})
    assert capfd.readouterr().err == ""
