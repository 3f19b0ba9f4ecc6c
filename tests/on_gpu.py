"""Gate 3 of the CUDA side, in one command: ``make test-gpu`` or ``python -m tests.on_gpu``.

First every test marked gpu, then those marked lean once under each tool of compute-sanitizer. Says what is missing and
fails where there is no GPU; nothing is skipped silently.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FAULT = 9
"""compute-sanitizer's exit status for what it finds."""


def sanitizer() -> str | None:
    """The program, from PATH or a CUDA toolkit."""
    toolkits = (os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda")
    folders = [f"{home}/{folder}" for home in toolkits if home for folder in ("bin", "compute-sanitizer")]
    found = shutil.which("compute-sanitizer")
    return found or next(filter(None, (shutil.which("compute-sanitizer", path=f) for f in folders)), None)


def missing(with_sanitizer: bool = True) -> list[str]:
    """What this machine lacks for work on a GPU, a sentence each."""
    import torch

    from convext import _C

    lacks = []
    if torch.version.cuda is None:
        lacks.append(f"torch {torch.__version__} is built without CUDA: install a CUDA build of it into .venv")
    elif not torch.cuda.is_available():
        lacks.append("torch finds no CUDA device: is there a GPU, and does nvidia-smi list it?")
    if not _C.built_with_cuda():
        lacks.append("convext is built without CUDA kernels: put nvcc on PATH, then CONVEXT_CUDA=1 make -B build")
    if with_sanitizer and sanitizer() is None:
        lacks.append("compute-sanitizer is not found: it comes with the CUDA toolkit (put it on PATH or set CUDA_HOME)")
    return lacks


def require(what: str, with_sanitizer: bool = True) -> None:
    """Ends the program with status 2 and one message where something is missing."""
    lacks = missing(with_sanitizer)
    if lacks:
        print(f"{what} needs a GPU, and something is missing here:", *lacks, sep="\n  ", file=sys.stderr)
        sys.exit(2)


def steps(program: str, help_text: str) -> list[tuple[str, list[str], Mapping[str, str]]]:
    """Name, command and environment of everything to run. Only convext's kernels are looked at, where the sanitizer can
    tell them apart; initcheck must see who else writes. torch's allocator would hide what lies between tensors."""
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    only = next((option for option in ("--kernel-regex", "--kernel-name") if option in help_text), None)
    result: list[tuple[str, list[str], Mapping[str, str]]] = [("tests", [*tests, "-m", "gpu"], {})]
    for tool in TOOLS:
        chosen = [only, "kns=convext"] if only and tool != "initcheck" else []
        command = [program, "--tool", tool, "--error-exitcode", str(FAULT), "--target-processes", "all", *chosen]
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        result.append((tool, [*command, *tests, "-m", "gpu and lean"], uncached))
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    names = list(sys.argv[1:] if arguments is None else arguments)
    if unknown := set(names) - {"tests", *TOOLS}:
        print(f"expected some of tests, {', '.join(TOOLS)}; got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    require("make test-gpu")
    program = sanitizer()
    assert program is not None
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    failed = []
    for name, command, extra in steps(program, told.stdout + told.stderr):
        if names and name not in names:
            continue
        print(f"== {name}: {' '.join(command)}", flush=True)
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, **extra}, check=False).returncode
        if status != 0:
            failed.append(f"{name} (status {status}{', see above what it found' if status == FAULT else ''})")
    print(f"failed: {', '.join(failed)}" if failed else "all passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
