"""Gate 2 for the one family of CUDA kernels that the stand-in cannot run: implicit_gemm on Hopper.

What its threads do is compiled by g++ with an engine in place of the instructions, tests/emulator/check_hopper.cpp,
which does what the PTX ISA says of them, and must equal the naive CPU algorithm exactly, for every shape of tile. Its
machine code is looked at in test_cuda_compile.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import emulated
from tests.emulated import CUDA, EMULATOR, NONE, ONES, ROOT, Conv

pytestmark = emulated.NEEDED

CHECK = EMULATOR / "check_hopper.cpp"
# Tiles are 128 and 256 pixels, 64 and 128 output channels, 64 channels.
PLAIN = Conv(32, 32, (1, 7, 6), ONES, 1, layout="channels_last", dtype="float16")
SQUARE = replace(PLAIN, kernel=(1, 3, 3), before=(0, 1, 1), after=(0, 1, 1))

DIRECTIONS = ("forward", "input", "weight")

# All directions of these are taken, but for the gradient of the input of strided ones.
PROBLEMS: dict[str, list[Conv]] = {
    "pixels": [
        *(replace(PLAIN, input=(1, 1, n), batch=2) for n in (1, 63, 64, 65)),
        *(replace(PLAIN, input=(1, 3, n)) for n in (43, 85, 90)),
    ],
    "outputs": [replace(PLAIN, outputs=n, input=(1, 3, 5), kernel=(1, 1, 2)) for n in (40, 64, 72, 128, 136)],
    "channels": [replace(PLAIN, channels=n, input=(1, 3, 5), kernel=(1, 2, 1)) for n in (40, 64, 72, 128, 136)],
    "images": [replace(SQUARE, channels=64, input=(1, 5, 5), batch=n) for n in (3, 11)],
    "strides": [
        replace(SQUARE, channels=64, input=(1, 9, 11), stride=(1, 2, 2)),
        replace(SQUARE, input=(1, 10, 12), stride=(1, 3, 2), flip=True, dtype="bfloat16"),
        replace(SQUARE, input=(1, 17, 9), stride=(1, 8, 1), batch=2),
        replace(SQUARE, input=(1, 4, 5), stride=(1, 100, 100)),  # one output: no step is taken
        replace(SQUARE, input=(1, 12, 9), stride=(1, 2, 2), dilation=(1, 3, 2), batch=3),
    ],
    "dilation": [
        replace(SQUARE, input=(1, 9, 11), dilation=(1, 2, 3), before=(0, 4, 1), after=(0, 0, 5), batch=2),
        replace(SQUARE, input=(1, 3, 3), dilation=(1, 36, 36), before=(0, 36, 36), after=(0, 36, 36)),
        replace(SQUARE, input=(1, 3, 3), dilation=(1, 127, 1), before=(0, 127, 1), after=(0, 127, 1)),
    ],
    "padding": [
        replace(SQUARE, kernel=(1, 2, 4), before=(0, 2, 0), after=(0, 1, 3), flip=True, dtype="bfloat16"),
        replace(SQUARE, kernel=(1, 2, 2), before=(0, 5, 4), after=(0, 3, 6)),  # beyond the kernel: dy is cut
        replace(SQUARE, kernel=(1, 5, 5), input=(1, 2, 2), before=(0, 6, 6), after=(0, 6, 6)),
        replace(SQUARE, before=NONE, after=NONE, mode="reflect"),
    ],
    "dimensions": [
        replace(PLAIN, input=(1, 1, 70), kernel=(1, 1, 5), before=(0, 0, 300), after=(0, 0, 9), batch=2),
        replace(PLAIN, input=(3, 5, 4), kernel=(3, 2, 3), before=(1, 0, 1), after=(1, 1, 2), batch=2),
        replace(PLAIN, input=(6, 4, 6), kernel=(2, 3, 3), stride=(2, 1, 2), dilation=(3, 1, 1)),
        replace(PLAIN, input=(1, 6, 1), kernel=(1, 3, 1), before=(0, 1, 0), after=(0, 1, 0), batch=3),
        replace(PLAIN, input=(5, 1, 1), kernel=(2, 1, 1), batch=3),
    ],
    "groups": [replace(SQUARE, channels=128, outputs=128, groups=2, input=(1, 3, 3), flip=f) for f in (False, True)],
}

# The directions of these that are taken.
TAKEN: list[tuple[Conv, set[str]]] = [
    (replace(PLAIN, dtype="float32"), set()),
    (replace(PLAIN, layout="contiguous"), set()),
    (replace(SQUARE, mode="reflect"), set()),
    (replace(PLAIN, channels=36), set()),
    (replace(PLAIN, outputs=36), set()),
    (replace(PLAIN, channels=24), set()),
    (replace(PLAIN, outputs=24), set()),
    (replace(SQUARE, input=(1, 20, 3), stride=(1, 9, 1)), set()),
    (replace(SQUARE, input=(1, 3, 3), before=(0, 128, 0)), {*DIRECTIONS}),  # corners are -128 to 127
    (replace(SQUARE, input=(1, 3, 3), before=(0, 129, 0)), {"input"}),  # for which this one is 127
    (replace(SQUARE, input=(1, 3, 3), before=(0, 130, 0)), set()),
    (replace(SQUARE, input=(1, 300, 1), dilation=(1, 128, 1)), set()),
    (replace(SQUARE, input=(20, 1, 1), before=(17, 1, 1)), set()),
    (replace(SQUARE, channels=64, outputs=128, groups=2, input=(1, 3, 3)), {"input", "weight"}),
    (replace(SQUARE, channels=128, outputs=64, groups=2, input=(1, 3, 3)), {"forward", "weight"}),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated.compile_object(emulated.CPU_REFERENCES[0], tmp_path_factory.mktemp("hopper_reference"))


@pytest.fixture(scope="module")
def program(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hopper")
    return emulated.link([emulated.compile_object(CHECK, folder), reference], folder / "check")


def expect_taken(program: Path, problems: list[tuple[Conv, set[str]]]) -> None:
    seen = emulated.expect_exact(emulated.run_check(program, [problem for problem, _ in problems]))
    taken = {name: sum(name in directions for _, directions in problems) for name in DIRECTIONS}
    # Boxes and three tiles; four tiles.
    assert seen["comparisons"] == 4 * sum(taken.values())
    for i, name in enumerate(DIRECTIONS):
        assert seen.get(f"refused direction{i}", 0) == len(problems) - taken[name], name


@pytest.mark.parametrize("hazard", PROBLEMS)
def test_threads_on_documented_instructions(program: Path, hazard: str) -> None:
    problems = PROBLEMS[hazard]
    expect_taken(program, [(p, {*DIRECTIONS} - ({"input"} if p.stride != ONES else set())) for p in problems])


def test_what_is_taken(program: Path) -> None:
    for problem, directions in TAKEN:
        expect_taken(program, [(problem, directions)])


@dataclass(frozen=True)
class Mutant:
    """A source with one mistake, and problems that must bring it to light."""

    file: str
    old: str
    new: str
    hazard: str


MUTANTS = {
    "box_too_wide": Mutant("tensor_map.cuh", "(g.output[axis] - 1) * g.stride[axis] - (size - 1)", "0", "padding"),
    "wrong_offset": Mutant("hopper.cuh", "tile_bytes, kAtomBytes);", "kAtomBytes, kAtomBytes);", "outputs"),
}


@pytest.mark.slow
def test_mistakes_come_to_light(reference: Path, tmp_path: Path) -> None:
    def caught(name: str) -> bool:
        mutant, folder = MUTANTS[name], tmp_path / name
        for part in ("csrc", EMULATOR):
            shutil.copytree(ROOT / part, folder / part)
        path = folder / CUDA / mutant.file
        text = path.read_text()
        assert text.count(mutant.old) == 1, name
        path.write_text(text.replace(mutant.old, mutant.new))
        check = folder / CHECK
        check.write_text("#define CONVEXT_HALF_ONLY\n" + check.read_text())
        changed = emulated.link([emulated.compile_object(CHECK, folder, folder), reference], folder / "check")
        problems = [problem for problem in PROBLEMS[mutant.hazard] if problem.dtype == "float16"]
        return emulated.run_check(changed, problems).returncode == 1

    with ThreadPoolExecutor(2) as pool:
        assert dict(zip(MUTANTS, pool.map(caught, MUTANTS), strict=True)) == dict.fromkeys(MUTANTS, True)
