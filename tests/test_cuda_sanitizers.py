"""The CUDA kernels on the CPU under the address and undefined-behaviour sanitizers.

The other tests of the emulator catch what leaves a tensor (guard pages), an array or the range of its type; here every
kernel but Hopper's runs a share of their problems with whatever else the sanitizers find: above all accesses that are
not aligned to what they access, on which a GPU faults.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import pytest

from tests import (
    test_cuda_depthwise,
    test_cuda_emulator,
    test_cuda_few_channels,
    test_cuda_implicit_gemm,
    test_cuda_pooling,
    test_cuda_winograd,
)
from tests.emulated import (
    CHECKS,
    CPU_REFERENCES,
    CUDA,
    EMULATOR,
    NEEDED,
    ROOT,
    Problem,
    compile_all,
    compile_object,
    expect_exact,
    link,
    run_check,
)

pytestmark = [*NEEDED, pytest.mark.slow]

ALL = ("naive", "im2col", "direct", "winograd", "implicit_gemm")
FLAGS = [
    *("-g1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-undefined-trap-on-error"),
    *("-fno-sanitize-recover=all", f"-DCONVEXT_CHECK_CONVS={','.join(f'&cuda::conv_{name}' for name in ALL)}"),
]
EVERY = 25  # which of the problems: switching stacks under the address sanitizer is slow
# What is linked into a program besides the kernels, and instead of some of them.
POOLS_CHECK = EMULATOR / "check_pools.cpp"
OF_ONE = dict.fromkeys(test_cuda_implicit_gemm.UNITS, test_cuda_implicit_gemm.FLAGS[1:])
PANELS = {test_cuda_winograd.DRIVER: test_cuda_winograd.PROGRAMS["panels"]}
PROBLEMS: dict[str, tuple[Path, Mapping[str, Sequence[Problem]]]] = {
    "all": (CHECKS[0], test_cuda_emulator.CONVS),
    "depthwise": (CHECKS[0], test_cuda_depthwise.CONVS),
    "few_channels": (CHECKS[0], test_cuda_few_channels.CONVS),
    "implicit_gemm": (CHECKS[0], test_cuda_implicit_gemm.CONVS),
    "winograd": (CHECKS[0], test_cuda_winograd.PROBLEMS),
    "winograd_in_panels": (CHECKS[0], test_cuda_winograd.PROBLEMS),
    "pools": (CHECKS[0], test_cuda_emulator.POOLS),
    "placed_pools": (POOLS_CHECK, test_cuda_pooling.POOLS),
    "other_pools": (CHECKS[1], test_cuda_emulator.OTHERS),
}


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    folder = tmp_path_factory.mktemp("sanitizers")
    sources = [*sorted(path.relative_to(ROOT) for path in (ROOT / CUDA).glob("*.cu")), *CPU_REFERENCES]
    return compile_all({source: [*FLAGS, *OF_ONE.get(source, ())] for source in sources}, folder)


@pytest.mark.parametrize("of", PROBLEMS)
def test_nothing_is_found(objects: dict[Path, Path], of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check, hazards = PROBLEMS[of]
    changed = PANELS if of == "winograd_in_panels" else {}
    instead = {source: compile_object(source, tmp_path, flags=[*FLAGS, *flags]) for source, flags in changed.items()}
    parts = [*{**objects, **instead}.values(), compile_object(check, tmp_path, flags=FLAGS)]
    program = link(parts, tmp_path / "check", ["-fsanitize=address,undefined"])
    # Guard pages answer an access past a tensor with the check's own status.
    monkeypatch.setenv("ASAN_OPTIONS", "detect_stack_use_after_return=0:handle_segv=0:detect_leaks=0")
    seen = expect_exact(run_check(program, list(chain(*hazards.values()))[::EVERY]))
    assert seen["comparisons"] > 0
