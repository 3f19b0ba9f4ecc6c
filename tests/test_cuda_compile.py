"""Gate 1 of the CUDA side: every kernel file compiles for every GPU generation we serve, without warnings or spills.

Needs nvcc, and no GPU. nvcc compiles each csrc/cuda/*.cu for all of its architectures at once, two files at a time.
"""

import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
CUDA = CSRC / "cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
HEADERS = sorted(CUDA.glob("*.cuh"))
ARCHITECTURES = ("75", "80", "90")
HOPPER = [source for source in SOURCES if "hopper" in source.stem]
NVCC = shutil.which("nvcc")
CUOBJDUMP = shutil.which("cuobjdump")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


def architectures_of(source: Path) -> tuple[str, ...]:
    return (*ARCHITECTURES, "90a") if source in HOPPER else ARCHITECTURES


def compile_for_all(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    assert NVCC is not None
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in architectures_of(source)]
    flags = ["--std=c++17", "-O3", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-O0", "-Xptxas=-v"]
    command = [NVCC, *flags, *targets, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def spills(log: str) -> list[str]:
    """The kernels that ptxas -v says keep registers in memory."""
    pattern = r"Function properties for (.+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    return [name for name, stores, loads in re.findall(pattern, log) if int(stores) or int(loads)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("nvcc")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SOURCES, pool.map(lambda source: compile_for_all(source, folder), SOURCES), strict=True))


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles_without_warnings_or_spills(
    source: Path, compiled: dict[Path, subprocess.CompletedProcess[str]]
) -> None:
    result = compiled[source]
    log = result.stdout + result.stderr
    assert result.returncode == 0, log[-4000:]
    assert log.count("Compiling entry function") >= len(architectures_of(source)), "ptxas -v did not report any kernel"
    assert spills(log) == []
    assert "Potential Performance Loss" not in log, "wgmma are put one after the other"


@needs_nvcc
@pytest.mark.skipif(CUOBJDUMP is None, reason="cuobjdump is not installed")
@pytest.mark.parametrize("source", HOPPER, ids=lambda source: source.name)
def test_hopper_uses_its_instructions(source: Path, compiled: dict[Path, subprocess.CompletedProcess[str]]) -> None:
    """Products of four warps, none waiting for the last but once a step, and copies in all im2col modes."""
    command = [str(CUOBJDUMP), "-sass", compiled[source].args[-1]]
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
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", *(f"-isystem{folder}" for folder in folders)]
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
