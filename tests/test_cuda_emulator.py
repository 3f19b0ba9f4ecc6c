"""Gate 2 of the CUDA side: the kernels run, unchanged, on the CPU and equal the naive CPU algorithms exactly.

g++ compiles csrc/cuda/*.cu as C++ against the stand-in headers in tests/emulator (see cuda_runtime.h there for what
it makes visible) into one program, tests/emulator/check.cpp, which reads problems from its standard input. It needs
g++ on Linux and nothing else.
"""

import os
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.emulated import (
    CHECKS,
    CPU_REFERENCES,
    CUDA,
    DTYPES,
    EMULATOR,
    FLOATING,
    INTEGER,
    MODES,
    NEEDED,
    ONES,
    ROOT,
    Conv,
    Other,
    Pool,
    Problem,
    compile_all,
    compile_object,
    expect_exact,
    in_both_layouts,
    link,
    plant,
    random_problems,
    run_check,
    sampled,
)

pytestmark = NEEDED

# By what they could bring to light. Tile constants: gemm.cuh 64 or 128 a side and slices of 16 or 8, conv_direct.cu
# 256 x 32 or 128 x 64 (places x channels), chunks of 32 and 8 channels for the lane kernel, conv_direct_weight.cu
# 32 x 32 and stages of 32, 8 taps; pool_direct.cu 32 wide, 8 high, bands of 2048.
CONVS: dict[str, list[Problem]] = {
    "one_element": in_both_layouts(
        [Conv(1, 1, ONES, ONES, 1), Conv(1, 1, (1, 1, 1), (1, 3, 3), 1, before=(0, 1, 1), after=(0, 1, 1))]
    ),
    "output_channels": in_both_layouts([Conv(5, k, (1, 5, 5)) for k in (7, 8, 9, 31, 32, 33, 63, 64, 65)]),
    "input_channels": in_both_layouts(
        [Conv(c, 17, (1, 5, 5), (1, 2, 2)) for c in (1, 2, 8, 15, 16, 31, 32, 33, 64, 65)]
    ),
    "places": in_both_layouts(
        [Conv(9, 12, (1, 1, n + 1), (1, 1, 2), 1) for n in (31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)]
    ),
    "large_tiles": in_both_layouts(
        [Conv(3, 120, (1, 14, 14), batch=1, flip=True, dtype=dtype) for dtype in FLOATING]
        + [Conv(16, 70, (1, 10, 11), batch=1)]
    ),
    "parts_of_sums": in_both_layouts([Conv(2, 5, (1, 24, 24), (1, 2, 2), 2), Conv(3, 70, (1, 20, 21), ONES, 3)]),
    "pointwise": in_both_layouts(
        [
            *(Conv(c, k, (1, 6, 7), ONES, 3) for c, k in ((3, 65), (65, 3), (16, 16))),
            Conv(6, 4, (2, 3, 5), ONES, groups=2),
            Conv(3, 4, (1, 5, 5), ONES, stride=(1, 2, 2)),
        ]
    ),
    "padding_modes": in_both_layouts(
        [
            Conv(c, k, (1, 6, 7), (1, 3, 4), stride=stride, before=(0, 2, 3), after=(0, 4, 1), mode=mode)
            for mode in MODES
            for c, k in ((4, 3), (10, 12))
            for stride in (ONES, (1, 2, 1))
        ]
    ),
    "padding_past_the_kernel": in_both_layouts(
        [
            Conv(k, k, (1, 5, 3), (1, 2, 2), before=(0, 5, 9), after=(0, 7, 4), mode=m)
            for m in ("zeros", "replicate")
            for k in (2, 9)
        ]
        + [
            Conv(k, k, (1, 5, 3), (1, 2, 2), before=(0, 5, 3), after=(0, 5, 3), mode=m)
            for m in ("circular", "symmetric")
            for k in (2, 9)
        ]
        + [Conv(2, k, (1, 5, 3), (1, 2, 2), before=(0, 4, 2), after=(0, 4, 2), mode="reflect") for k in (2, 9)]
    ),
    "one_place_shown_often": in_both_layouts(
        [Conv(9, 9, (1, 1, 1), (1, 3, 3), before=(0, 2, 1), after=(0, 1, 3), mode="replicate")]
        + [
            Conv(9, 9, (1, 1, 2), (1, 2, 3), before=(0, 1, 2), after=(0, 1, 2), mode=mode)
            for mode in ("circular", "symmetric")
        ]
    ),
    "strides_and_dilation": in_both_layouts(
        [
            Conv(9, 10, (1, 11, 13), (1, 3, 2), stride=(1, *s), dilation=(1, *d), before=(0, 2, 1), after=(0, 1, 2))
            for s in ((1, 1), (2, 3), (4, 5))
            for d in ((1, 1), (2, 3))
        ]
        + [Conv(3, 4, (1, 9, 9), (1, 2, 2), stride=(1, 100, 3))]
    ),
    "dimensions": in_both_layouts(
        [
            Conv(3, 9, (1, 1, 50), (1, 1, 4), before=(0, 0, 3)),
            Conv(3, 5, (5, 4, 6), (3, 2, 3), before=(1, 1, 1), after=(1, 0, 1)),
            Conv(
                2,
                10,
                (4, 5, 3),
                (2, 3, 3),
                stride=(2, 1, 2),
                dilation=(2, 1, 1),
                before=(2, 2, 2),
                after=(1, 2, 2),
                mode="reflect",
            ),
            Conv(9, 9, (3, 3, 3), (3, 3, 3), before=(3, 1, 2), after=(1, 3, 2), mode="circular", flip=True),
        ]
    ),
    "groups": in_both_layouts(
        [
            Conv(g * c, g * k, (1, 6, 5), groups=g, flip=f)
            for g, c, k, f in ((2, 3, 4, False), (2, 9, 12, True), (8, 2, 2, False))
        ]
    ),
    "depthwise": in_both_layouts(
        [
            Conv(c, c * m, (1, 9, 8), kernel, groups=c, before=(0, 1, 1), after=(0, 1, 1), mode=mode, flip=m == 2)
            for c in (5, 32, 40)
            for m in (1, 2)
            for kernel, mode in (((1, 3, 3), "zeros"), ((1, 2, 9), "circular"))
        ]
    ),
    "flipped": in_both_layouts([Conv(k, k, (2, 6, 7), (2, 3, 2), flip=True) for k in (3, 9)]),
    "dtypes": in_both_layouts(
        [
            Conv(c, k, (1, 6, 7), groups=groups, before=(0, 1, 1), mode=mode, dtype=dtype)
            for dtype in FLOATING[1:]
            for c, k, groups, mode in (
                (5, 3, 1, "zeros"),
                (10, 66, 1, "circular"),
                (66, 5, 1, "zeros"),
                (33, 33, 33, "reflect"),
            )
        ]
        + [Conv(10, 66, (1, 5, 7), ONES, dtype=dtype) for dtype in FLOATING[1:]]
    ),
    "batch_in_pieces": in_both_layouts(
        [
            Conv(40, 12, (1, 16, 16), ONES, batch=4),
            Conv(9, 48, (1, 16, 15), (1, 2, 2), batch=4),
            Conv(50, 50, (1, 16, 16), (1, 3, 2), batch=4, groups=50),
        ]
    ),
    "workspace_in_pieces": in_both_layouts(
        [Conv(12, 9, (1, 14, 14), before=(0, 1, 1), after=(0, 1, 1)), Conv(12, 8, (1, 20, 20), groups=4)]
    ),
    "random": list(random_problems(Conv, 120, 1, 300_000)),
}
POOLS: dict[str, list[Problem]] = {
    "one_element": in_both_layouts(
        [Pool(ONES, ONES, batch=1, channels=1), Pool(ONES, (1, 3, 3), before=(0, 1, 1), after=(0, 1, 1))]
    ),
    "tile_edges": in_both_layouts(
        [Pool((1, h, w), (1, 2, 3), channels=c) for h, w, c in ((8, 33, 1), (9, 34, 31), (10, 35, 33))]
    ),
    "many_bands": in_both_layouts(
        [
            Pool((1, 41, 30), (1, 40, 3), before=(0, 1, 1), after=(0, 1, 1)),
            Pool((5, 12, 12), (3, 3, 3), before=(1, 1, 1), after=(1, 1, 1)),
            Pool((1, 90, 3), (1, 90, 2)),
        ]
    ),
    "special_numbers": in_both_layouts(
        [Pool(special=True), Pool((4, 7, 6), (2, 3, 2), (2, 2, 1), special=True, before=(1, 1, 1))]
    ),
    "windows_outside": in_both_layouts(
        [
            Pool((1, 4, 5), (1, 2, 2), before=(0, 4, 0), after=(0, 3, 3)),
            Pool((1, 3, 3), (1, 2, 2), (1, 3, 3), before=(0, 2, 2)),
        ]
    ),
    "strides_and_dilation": in_both_layouts(
        [
            Pool((1, 19, 17), (1, 3, 2), (1, *s), dilation=(1, *d), before=(0, 1, 1))
            for s in ((1, 2), (2, 1), (5, 6))
            for d in ((1, 1), (2, 3))
        ]
    ),
    "divisors": in_both_layouts(
        [
            Pool(
                (1, 8, 9),
                (1, 3, 3),
                (1, 2, 2),
                before=(0, 1, 1),
                after=(0, 1, 0),
                ceil=ceil,
                include_pad=pad,
                divisor=divisor,
            )
            for ceil in (False, True)
            for pad in (False, True)
            for divisor in (0, 5)
        ]
    ),
    "batch_in_pieces": in_both_layouts([Pool((1, 20, 20), batch=4, channels=33)]),
    "wide_places": in_both_layouts([Pool((1, 20, 20), (1, 17, 16)), Pool((1, 16, 16), (1, 16, 16), before=(0, 8, 8))]),
    "dimensions": in_both_layouts(
        [
            Pool((1, 1, 70), (1, 1, 5), (1, 1, 2)),
            Pool((6, 5, 7), (2, 3, 2), (2, 1, 3), dilation=(2, 1, 1), before=(1, 1, 0)),
        ]
    ),
    "dtypes": in_both_layouts([Pool(dtype=dtype, before=(0, 1, 1)) for dtype in DTYPES]),
    "random": list(random_problems(Pool, 120, 2, 1_000_000)),
}


ADAPTIVE = in_both_layouts(
    [
        *(
            Pool((1, *n), parts=(1, *p))
            for n, p in (((7, 7), (5, 5)), ((3, 4), (5, 7)), ((9, 50), (2, 3)), ((6, 5), (3, 1)))
        ),
        Pool((5, 6, 7), parts=(2, 4, 3), special=True),
        Pool((1, 50, 24), parts=(1, 3, 2), channels=33),
        *(Pool((1, 7, 5), parts=(1, 3, 2), dtype=dtype) for dtype in DTYPES),
    ]
)
OTHERS: dict[str, list[Problem]] = {
    "unpool": [
        *(
            Other("unpool", (layout, n, c, i, o))
            for layout in (0, 1)
            for n, c, i, o in ((2, 3, 20, 9), (1, 33, 7, 300))
        ),
        *(Other("unpool", (1, 2, 5, 6, 11), dtype) for dtype in DTYPES),
    ],
    "k_max": [
        *(
            Other("k_max", (layout, n, c, places, k))
            for layout in (0, 1)
            for n, c, places, k in ((2, 3, 20, 1), (1, 2, 255, 255), (1, 3, 257, 7), (2, 2, 600, 100))
        ),
        *(Other("k_max", (1, 2, 3, 40, 6), dtype) for dtype in DTYPES),
    ],
    "fractional": [
        *(
            Other("fractional", (spatial, 2, 3, *size, *kernel, *output), dtype)
            for dtype in FLOATING
            for spatial, size, kernel, output in (
                (2, (1, 9, 11), (1, 2, 3), (1, 5, 4)),
                (2, (1, 37, 20), (1, 3, 2), (1, 30, 1)),
                (2, (1, 18, 19), (1, 17, 17), (1, 2, 2)),
                (3, (6, 7, 8), (2, 2, 3), (3, 4, 5)),
            )
        )
    ],
}


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    folder = tmp_path_factory.mktemp("emulator")
    kernels = [path.relative_to(ROOT) for path in sorted((ROOT / CUDA).glob("*.cu"))]
    kernels = [path for path in kernels if not path.name.startswith("conv_implicit_gemm")]  # its tests have a file
    # The longest first.
    kernels.sort(key=lambda path: -(ROOT / path).stat().st_size)
    return compile_all(dict.fromkeys((*kernels, *CPU_REFERENCES, *CHECKS), ()), folder)


@pytest.fixture(scope="session")
def program(objects: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_check(objects, CHECKS[0], tmp_path_factory.mktemp("emulator_program") / "check")


@pytest.fixture(scope="session")
def other_program(objects: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_check(objects, CHECKS[1], tmp_path_factory.mktemp("emulator_program") / "check_other_pools")


def link_check(objects: dict[Path, Path], check: Path, program: Path) -> Path:
    others = {source for source in CHECKS if source != check}
    return link([result for source, result in objects.items() if source not in others], program)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_pools(other_program: Path, kind: str) -> None:
    seen = expect_exact(run_check(other_program, OTHERS[kind]))
    results = {"unpool": 1, "k_max": 2, "fractional": 4}[kind]
    assert seen["comparisons"] == 2 * results * len(OTHERS[kind])


@pytest.mark.parametrize("hazard", CONVS)
def test_convolution(program: Path, hazard: str) -> None:
    problems = sampled(CONVS[hazard])
    seen = expect_exact(run_check(program, problems))
    # Four algorithms, three directions, two thread orders; nothing here is too large for those that take any kernel.
    assert seen["comparisons"] == 24 * len(problems) - 2 * seen.get("refused winograd", 0)
    assert "refused im2col" not in seen
    assert seen["barriers"] > 0


@pytest.mark.parametrize("hazard", [*POOLS, "adaptive"])
def test_pooling(program: Path, hazard: str) -> None:
    problems = ADAPTIVE if hazard == "adaptive" else POOLS[hazard]
    seen = expect_exact(run_check(program, problems))
    integers = sum(problem.dtype in INTEGER for problem in problems)
    # naive takes everything, direct no integers; per order seven comparisons, four where there is no gradient.
    assert seen["comparisons"] == 2 * (2 * 7 * (len(problems) - integers) + 4 * integers)
    assert seen.get("refused direct", 0) == integers


def test_images_do_not_see_each_other(program: Path) -> None:
    problems: list[Problem] = [problem for problem in CONVS["random"] if problem.batch > 1][:40]
    problems += [replace(problem, batch=3) for problem in CONVS["large_tiles"] + CONVS["padding_modes"][:16]]
    assert expect_exact(run_check(program, problems, "bits"))["comparisons"] > 200


def test_too_large_a_panel_is_refused(program: Path) -> None:
    huge = Conv(1, 1, (1, 30, 30), (1, 5, 5), 1)  # 25 taps of 676 places, at 4 bytes: past the 48 kB of FLAGS
    assert expect_exact(run_check(program, [huge]))["refused im2col"] == 3


@dataclass(frozen=True)
class Mutant:
    """A kernel source with one mistake, and problems that must bring it to light."""

    file: str
    unit: str
    old: str
    new: str
    problems: list[Problem]
    which: int = 0  # of several occurrences


BARRIER = "__syncthreads();"
MUTANTS = {
    "gemm_barrier": Mutant("gemm.cuh", "conv_im2col.cu", BARRIER, "", CONVS["input_channels"], which=1),
    "pool_barrier": Mutant("pool_direct.cu", "pool_direct.cu", BARRIER, "", POOLS["many_bands"]),
    "weight_barrier": Mutant("conv_direct_weight.cu", "conv_direct_weight.cu", BARRIER, "", CONVS["places"], which=2),
    "wrong_index": Mutant(
        "pool_direct.cu", "pool_direct.cu", "(o * task.out[1] + p)", "(o * task.out[1] + o)", POOLS["tile_edges"]
    ),
    "count_barrier": Mutant("k_max.cu", "k_max.cu", BARRIER, "", OTHERS["k_max"], which=1),
    "wrong_start": Mutant(
        "fractional.cu", "fractional.cu", "task.start(plane, 1, p)", "task.start(plane, 1, o)", OTHERS["fractional"]
    ),
    "past_the_end": Mutant("gemm.cuh", "conv_im2col.cu", "if (n >= size.n) continue;", "", CONVS["places"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_come_to_light(name: str, objects: dict[Path, Path], tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    plant(tmp_path, mutant.file, mutant.old, mutant.new, mutant.which)
    unit = CUDA / mutant.unit
    # First, so that of templates that other units make too it is the changed one that is linked.
    rest = {source: result for source, result in objects.items() if source != unit}
    changed = {unit: compile_object(unit, tmp_path, tmp_path, ["-O0"]), **rest}
    check = CHECKS[1] if isinstance(mutant.problems[0], Other) else CHECKS[0]
    done = run_check(link_check(changed, check, tmp_path / "check"), mutant.problems)
    assert done.returncode in (1, 3, 4), (done.stdout + done.stderr)[:4000]


@pytest.fixture(scope="session")
def selftest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selftest")
    return link([compile_object(EMULATOR / "selftest.cpp", folder)], folder / "selftest")


def scenario(selftest: Path, name: str, order: str = "forward") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EMULATOR_ORDER": order}
    return subprocess.run([selftest, name], env=environment, capture_output=True, text=True, check=False)


WARP_SCENARIOS = ["scan", "pass", "async", "products"]


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["barrier", "dynamic", "static_poison", "no_switches", *WARP_SCENARIOS])
def test_emulator_runs_kernels(selftest: Path, name: str, order: str) -> None:
    assert scenario(selftest, name, order).stdout == "yes\n"


@pytest.mark.parametrize("name", ["missing_barrier", "missing_syncwarp", "missing_wait", "missing_async_barrier"])
def test_emulator_shows_what_is_missing(selftest: Path, name: str) -> None:
    outputs = {scenario(selftest, name, order).stdout for order in ("forward", "reverse")}
    assert "no\n" in outputs


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("some_wait", "never reach"),
        ("wait_apart", "divergent barriers"),
        ("lanes_apart", "divergent steps"),
        ("lane_lost", "other lanes never reach"),
    ],
)
def test_emulator_shows_divergent_barriers(selftest: Path, name: str, text: str) -> None:
    done = scenario(selftest, name)
    assert done.returncode == 3
    assert text in done.stderr
    assert "selftest.cpp:" in done.stderr


def test_emulator_faults_past_shared_memory(selftest: Path) -> None:
    assert scenario(selftest, "overrun").returncode == -signal.SIGSEGV


def test_emulator_refuses_to_multiply_what_is_not_rounded(selftest: Path) -> None:
    done = scenario(selftest, "unrounded")
    assert done.returncode == 3
    assert "not rounded to tf32" in done.stderr


def test_emulator_refuses_what_a_gpu_refuses(selftest: Path) -> None:
    refused = "CUDA kernel plain could not be launched: "
    configuration, argument = refused + "invalid configuration argument", refused + "invalid argument"
    assert scenario(selftest, "refusals").stdout.splitlines() == [
        configuration,
        configuration,
        argument,
        "accepted",
        "yes",
    ]
