"""Gate 1 of the CUDA side: every kernel file compiles for every GPU generation we serve, without warnings or spills.

Needs nvcc, and no GPU. One call a file: a front-end pass for each of PASSES makes the PTX for all GPUs of its line, and
no host code is made (-fatbin): nvcc's front end warns about the host's part all the same, and g++ does where
tests/emulated.py compiles these files. A file with _hopper in its name is for sm_90a, and must compile, to kernels that
are not called, for the others: one stands for them.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
CUDA = CSRC / "cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
HEADERS = sorted(CUDA.glob("*.cuh"))
PASSES = {"75": ("75",), "80": ("80", "86", "89"), "90": ("90",)}
HOPPER_PASSES = {"80": ("80",), "90a": ("90a",)}
NEWEST = os.environ.get("CONVEXT_TEST_GPUS") == "newest"  # what .ci/run has time for
HOPPER = [source for source in SOURCES if "_hopper" in source.stem]
NVCC = shutil.which("nvcc")
CUOBJDUMP = shutil.which("cuobjdump")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


def passes_of(source: Path) -> dict[str, tuple[str, ...]]:
    """Virtual architecture -> the GPUs that its PTX is assembled for."""
    passes = HOPPER_PASSES if "_hopper" in source.stem else PASSES
    return {virtual: reals for virtual, reals in passes.items() if virtual.startswith("90") or not NEWEST}


def compile_for_all(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    assert NVCC is not None
    targets = [
        f"-gencode=arch=compute_{virtual},code=[{','.join(f'sm_{real}' for real in reals)}]"
        for virtual, reals in passes_of(source).items()
    ]
    flags = ["--std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas=-v", "--threads=2"]
    command = [NVCC, *flags, *targets, "-fatbin", str(source), "-o", str(folder / f"{source.stem}.fatbin")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def spills(log: str) -> list[str]:
    """The kernels that ptxas -v says keep registers in memory."""
    pattern = r"Function properties for (.+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    return [name for name, stores, loads in re.findall(pattern, log) if int(stores) or int(loads)]


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles_without_warnings_or_spills(source: Path, tmp_path: Path) -> None:
    result = compile_for_all(source, tmp_path)
    log = result.stdout + result.stderr
    assert result.returncode == 0, log[-4000:]
    compiled = set(re.findall(r"Compiling entry function '.+' for 'sm_(\w+)'", log))
    assert compiled == {real for reals in passes_of(source).values() for real in reals}
    assert spills(log) == []
    assert "Potential Performance Loss" not in log, "wgmma are put one after the other"


@needs_nvcc
@pytest.mark.skipif(CUOBJDUMP is None, reason="cuobjdump is not installed")
@pytest.mark.parametrize("source", HOPPER, ids=lambda source: source.name)
def test_hopper_uses_its_instructions(source: Path, tmp_path: Path) -> None:
    """Products of four warps, none waiting for the last but once a step, and copies in all im2col modes."""
    command = [str(CUOBJDUMP), "-sass", compile_for_all(source, tmp_path).args[-1]]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mine = [part for part in listing.split("Fatbin elf code:") if re.search(r"^arch = sm_90a$", part, re.MULTILINE)]
    functions = [re.split(r"\s", text, maxsplit=1) for part in mine for text in part.split("Function : ")[1:]]
    kernels = [(name, code) for name, code in functions if re.search(r"_kernel\w*Tiles", name)]
    assert len(kernels) >= 6, "three shapes of tile at least, in two types"
    for name, code in kernels:
        assert len(re.findall(r"\bHGMMA\.64x(?:64|128)x16\.F32", code)) >= 4, name
        assert len(re.findall(r"\bHGMMA\b.*gsb0", code)) == 1, name
        assert len(re.findall(r"\bWARPGROUP\.DEPBAR", code)) == 2, name
        assert set(re.findall(r"\bUTMALDG\.(\d)D\.IM2COL\b", code)) == {"3", "4", "5"}, name
        assert re.search(r"\bUTMALDG\.\dD ", code), name
        assert re.search(r"\b(?:LDL|STL)\b", code) is None, name


@needs_nvcc
@pytest.mark.parametrize(
    "code",
    [
        "__global__ void fine_kernel(int* to) { *to = 1; }\nvoid host() { int idle; }",
        "__global__ void idle_kernel(int* to) { int idle; *to = 1; }",
        "__global__ void narrow_kernel(unsigned* to, int n) { if (*to < n) *to = 1; }\nstatic void nobody() {}",
    ],
)
def test_warnings_are_errors(code: str, tmp_path: Path) -> None:
    """The host's part is looked at too, although nothing is made of it."""
    source = tmp_path / "mistake_hopper.cu"  # one architecture
    source.write_text(code + "\n")
    result = compile_for_all(source, tmp_path)
    assert result.returncode != 0
    assert "declared but never referenced" in result.stdout + result.stderr


def test_spills_are_seen() -> None:
    log = "Function properties for {}\n    8 bytes stack frame, {} bytes spill stores, {} bytes spill loads\n"
    assert spills(log.format("fine_kernel", 0, 0) + log.format("bad_kernel", 12, 4)) == ["bad_kernel"]


@cache
def cuda_headers() -> Path | None:
    """The folder of cuda_runtime_api.h, as nvcc itself finds it."""
    if NVCC is None:
        return None
    dry = subprocess.run([NVCC, "--dryrun", "-c", "none.cu"], capture_output=True, text=True, check=False).stderr
    folders = [Path(top.strip()) / "include" for top in re.findall(r"#\$ TOP=(.+)", dry)]
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()), None)


@needs_nvcc
def test_stream_fits_torch(tmp_path: Path) -> None:
    headers = cuda_headers()
    if headers is None:
        pytest.skip("cuda_runtime_api.h is not beside nvcc")
    torch = pytest.importorskip("torch")
    # Where torch was built without CUDA, it ships its CUDA headers but for this one, which its build would generate.
    macros = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    macros.parent.mkdir(parents=True)
    macros.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    folders = [Path(torch.__file__).parent / "include", tmp_path, headers, sysconfig.get_paths()["include"]]
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wall", *(f"-isystem{folder}" for folder in folders)]
    result = subprocess.run([*command, str(CUDA / "stream.cpp")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize("path", SOURCES + HEADERS, ids=lambda path: path.name)
def test_kernels_stand_alone(path: Path) -> None:
    text = path.read_text()
    forbidden = [
        name for name in re.findall(r'#include [<"]([^>"]+)', text) if re.match("torch|ATen|c10|cub|cublas", name)
    ]
    assert forbidden == []
    assert "<<<" not in text or path.name == "launch.cuh", "only launch.cuh launches"


def test_only_stream_knows_c10() -> None:
    knowing = [
        path.name for path in sorted(CSRC.rglob("*")) if path.is_file() and "#include <c10/cuda" in path.read_text()
    ]
    assert knowing == ["stream.cpp"]
