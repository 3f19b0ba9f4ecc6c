"""The tables of algorithms, the files of kernels and what ``explain`` says, held to each other.

A kernel file is named after its algorithm: ``csrc/cpu/conv_direct.cpp`` and its helpers ``conv_direct_*`` belong to
``direct``. The tables are in ``csrc/algorithms.cpp``, one line per algorithm and device.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convext
from benchmarks import shapes
from benchmarks.shapes import ConvProblem, PoolProblem
from convext import _C
from convext.choice import CONVOLUTIONS, DIRECTIONS, POOLS
from tests import calls, cases, numerics

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SUFFIX = {"cpu": ".cpp", "cuda": ".cu"}
NOT_ALGORITHMS = {"conv_bias"}  # the gradient of the bias: one sum for all algorithms

tables = pytest.mark.parametrize(("device", "kind"), [(d, k) for d in ("cpu", "cuda") for k in ("conv", "pool")])


def names_in_table(device: str, kind: str) -> list[str]:
    """The names in the source of a table, in order."""
    source = (CSRC / "algorithms.cpp").read_text()
    function = re.search(rf"{kind}_algorithms\(Device device\) {{(.*?)\n}}", source, re.DOTALL)
    assert function, f"{kind}_algorithms is not defined in algorithms.cpp"
    table = re.search(rf"on_{device} = {{(.*?)}};", function[1], re.DOTALL)
    assert table, f"{kind}_algorithms has no table on_{device}"
    return re.findall(rf"&{device}::{kind}_(\w+)", table[1])


def stems(device: str, kind: str) -> set[str]:
    """Names of the kernel files of a device, without suffix."""
    return {path.stem for path in (CSRC / device).glob(f"{kind}_*{SUFFIX[device]}")} - NOT_ALGORITHMS


@tables
def test_every_algorithm_has_its_file(device: str, kind: str) -> None:
    for name in names_in_table(device, kind):
        assert (CSRC / device / f"{kind}_{name}{SUFFIX[device]}").is_file(), f"{kind} {name} on {device}"


@tables
def test_every_file_has_its_algorithm(device: str, kind: str) -> None:
    names = names_in_table(device, kind)
    for stem in stems(device, kind):
        owners = [name for name in names if stem == f"{kind}_{name}" or stem.startswith(f"{kind}_{name}_")]
        assert owners, f"{stem}{SUFFIX[device]} belongs to no algorithm of the table: {names}"
    for path in (CSRC / device).glob(f"{kind}_*"):
        assert path.suffix in {".cpp", ".cu", ".inl", ".h", ".cuh"}, path.name


@tables
def test_every_algorithm_is_declared_and_says_its_own_name(device: str, kind: str) -> None:
    header = (CSRC / "algorithms.h").read_text()
    for name in names_in_table(device, kind):
        assert re.search(rf"\b{kind}_{name}\b", header), f"{kind}_{name} is not declared in algorithms.h"
        source = (CSRC / device / f"{kind}_{name}{SUFFIX[device]}").read_text()
        definition = re.search(rf"const \w+Algorithm {kind}_{name} = {{\s*\"(\w+)\"", source)
        assert definition, f"{kind}_{name} is not defined in the file of its name"
        assert definition[1] == name


@pytest.mark.parametrize("kind", ["conv", "pool"])
def test_both_devices_use_the_same_words(kind: str) -> None:
    """What two devices both have is listed in the same order."""
    cpu, cuda = names_in_table("cpu", kind), names_in_table("cuda", kind)
    assert [n for n in cpu if n in cuda] == [n for n in cuda if n in cpu]


@tables
def test_what_is_built_is_what_is_written(device: str, kind: str) -> None:
    written = names_in_table(device, kind)
    if device == "cuda" and not _C.built_with_cuda():
        written = []
    assert (_C.conv_algorithms if kind == "conv" else _C.pool_algorithms)(device) == written


@tables
def test_naive_closes_each_table(device: str, kind: str) -> None:
    names = names_in_table(device, kind)
    assert names[-1] == "naive"
    assert len(set(names)) == len(names)


def test_algorithms_lists_the_tables() -> None:
    for op in CONVOLUTIONS:
        assert convext.algorithms(op) == names_in_table("cpu", "conv")
    for op in POOLS:
        assert convext.algorithms(op) == names_in_table("cpu", "pool")


# What explain says ---------------------------------------------------------------------------------------------------


def check_explanation(explanation: convext.Explanation, names: list[str]) -> None:
    assert [v.name for v in explanation.verdicts] == names
    refusals = {v.name: v.refusal for v in explanation.verdicts}
    assert refusals["naive"] is None, "naive accepts everything"
    assert refusals[explanation.chosen] is None, "auto chose what cannot do the call"
    for verdict in explanation.verdicts:
        assert verdict.refusal is None or verdict.refusal.strip(), "a refusal has a text"
        assert verdict.workspace_bytes >= 0
        assert f"{verdict.name} " in str(explanation)


def conv_input(problem: ConvProblem, of: torch.dtype, channels_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and weight of the problem's shapes that hold no memory of their size."""
    x = torch.empty((), dtype=of).expand(problem.input_shape)
    if channels_last and problem.spatial > 1:
        x = torch.empty(problem.input_shape, dtype=of).contiguous(
            memory_format=calls.memory_format(problem.spatial, True)
        )
    return x, torch.empty((), dtype=of).expand(problem.weight_shape)


def explain_conv(problem: ConvProblem, direction: str, of: torch.dtype, channels_last: bool) -> convext.Explanation:
    x, w = conv_input(problem, of, channels_last)
    return calls.explain_conv(problem, calls.ConvOperands(x, w, None, x), direction)


SMALL_LAYERS = tuple(p for p in shapes.CONVOLUTIONS if "large" not in p.tags)


@pytest.mark.parametrize("problem", cases.CONVOLUTIONS + SMALL_LAYERS, ids=str)
def test_explanations_of_convolutions(problem: ConvProblem) -> None:
    for of, direction in itertools.product(numerics.FLOATS, DIRECTIONS):
        for channels_last in calls.layouts(problem.spatial):
            check_explanation(explain_conv(problem, direction, of, channels_last), calls.CONV_ALGORITHMS)


@pytest.mark.parametrize("problem", cases.POOLS, ids=lambda p: f"{'avg' if p.average else 'max'}-{p}")
def test_explanations_of_pooling(problem: PoolProblem) -> None:
    for of in numerics.FLOATS + numerics.INTEGERS:
        for channels_last in calls.layouts(problem.spatial):
            x = problem.operand(lambda *shape, of=of: torch.zeros(shape, dtype=of), channels_last)
            check_explanation(calls.explain_pool(problem, x), calls.POOL_ALGORITHMS)


@given(cases.conv_problems(), st.sampled_from(numerics.FLOATS), st.sampled_from(DIRECTIONS), st.booleans())
def test_the_choice_looks_at_one_image_only(
    problem: ConvProblem, of: torch.dtype, direction: str, channels_last: bool
) -> None:
    """Neither at the batch nor at the number of threads."""
    chosen = explain_conv(problem, direction, of, channels_last).chosen
    for batch in (1, 2, 64):
        assert explain_conv(problem.with_(batch=batch), direction, of, channels_last).chosen == chosen
    for count in (1, 2, 5):
        with numerics.threads(count):
            assert explain_conv(problem, direction, of, channels_last).chosen == chosen


@pytest.mark.parametrize("problem", SMALL_LAYERS, ids=str)
def test_the_choice_for_real_layers_looks_at_one_image_only(problem: ConvProblem) -> None:
    for direction in DIRECTIONS:
        chosen = {explain_conv(problem.with_(batch=b), direction, torch.float32, False).chosen for b in (1, 7, 1000)}
        assert len(chosen) == 1, direction


@pytest.mark.parametrize("average", [False, True])
def test_the_choice_of_pooling_looks_at_one_image_only(average: bool) -> None:
    @given(cases.pool_problems(average=average), st.sampled_from(numerics.FLOATS))
    def check(problem: PoolProblem, of: torch.dtype) -> None:
        def chosen(batch: int) -> str:
            x = torch.empty((), dtype=of).expand(problem.with_(batch=batch).input_shape)
            return calls.explain_pool(problem, x).chosen

        one = chosen(1)
        assert chosen(2) == chosen(64) == one
        with numerics.threads(3):
            assert chosen(1) == one

    check()


@pytest.mark.parametrize("problem", cases.CONV_CORE, ids=str)
def test_auto_gives_what_the_chosen_algorithm_gives(problem: ConvProblem, isa: str) -> None:
    operands = calls.conv_operands(problem, numerics.normals())
    for direction in DIRECTIONS:
        chosen = calls.explain_conv(problem, operands, direction).chosen
        expected = calls.run_conv(problem, direction, operands, chosen)
        numerics.assert_same_bits(calls.run_conv(problem, direction, operands, "auto"), expected, direction)


def test_a_named_algorithm_is_chosen_or_refused_with_its_reason() -> None:
    x, w = torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3)
    for verdict in convext.explain("conv2d", x, w).verdicts:
        if verdict.refusal is None:
            assert convext.explain("conv2d", x, w, algorithm=verdict.name).chosen == verdict.name
        else:
            with pytest.raises(NotImplementedError, match=re.escape(verdict.refusal)):
                convext.explain("conv2d", x, w, algorithm=verdict.name)


REFUSALS = [
    (algorithm, problem)
    for problem in (
        PoolProblem("integers", False, 2, (6, 6), (2, 2)),
        PoolProblem("window of 4100 columns", False, 1, (2, 4200), (1, 4100), stride=1),
        PoolProblem("stride of 5000", True, 1, (2, 5001), (1, 2), stride=5000),
    )
    for algorithm in calls.POOL_ALGORITHMS
]


@pytest.mark.parametrize(("algorithm", "problem"), REFUSALS, ids=str)
def test_explain_the_error_and_the_result_agree(algorithm: str, problem: PoolProblem) -> None:
    """A call through a named algorithm raises exactly where explain says why, in the same words; else equals naive."""
    make = numerics.integers(torch.int32 if problem.name == "integers" else torch.float32)
    x = problem.operand(make)
    refusal = calls.refusal(calls.explain_pool(problem, x), algorithm)
    run = calls.run_avg_pool if problem.average else calls.run_max_pool
    if refusal is not None:
        with pytest.raises(NotImplementedError, match=re.escape(refusal)):
            run(problem, x, algorithm)
        assert calls.explain_pool(problem, x).chosen != algorithm
        return
    for actual, expected in zip(run(problem, x, algorithm), run(problem, x, "naive"), strict=True):
        numerics.assert_equal(actual, expected)


# Instruction sets ----------------------------------------------------------------------------------------------------


def test_instruction_sets_can_be_listed_and_forced() -> None:
    available = _C.available_isas()
    assert available[0] == "baseline"
    assert _C.active_isa() in available
    for name in available:
        with numerics.instruction_set(name):
            assert _C.active_isa() == name


@pytest.mark.parametrize("name", ["", "avx1024", "AVX2"])
def test_an_unknown_instruction_set_is_refused(name: str) -> None:
    before = _C.active_isa()
    with pytest.raises(ValueError, match=f"'{name}' is not available.*baseline"):
        _C.set_isa(name)
    assert _C.active_isa() == before
