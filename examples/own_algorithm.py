"""Write your own algorithm: python -m examples.own_algorithm

An algorithm is one file of kernels, one declaration and one line in a table; the build, the tests, the benchmark,
``convext.algorithms`` and ``convext.explain`` find it there. This adds ``shift`` (conv_shift.cpp, beside this file) to
a copy of the source tree, builds the copy, and shows it in the table, the tests and the benchmark. The tree itself is
left alone.

The build would compile again whatever includes algorithms.h. A declaration more changes none of it, so the objects of
the tree's own build are taken over, where there are any (``make build``), and two files are compiled. Without them, all
are: some minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("benchmarks", "convext", "csrc", "tests", "pyproject.toml", "setup.py")
NAME = "shift"
KERNEL = f"csrc/cpu/conv_{NAME}.cpp"
TABLE = "csrc/algorithms.cpp"
EDITS = (
    ("csrc/algorithms.h", "namespace cpu {\nextern const ConvAlgorithm ", f"conv_{NAME}, "),
    (TABLE, "      &cpu::conv_direct,\n", f"      &cpu::conv_{NAME},\n"),
)
"""File, the text after which something is put in, and what."""
TESTS = (
    "tests/test_algorithm_table.py::test_every_algorithm_is_declared_and_says_its_own_name",
    "tests/test_algorithm_table.py::test_what_is_built_is_what_is_written",
    "tests/test_conv_algorithms.py::test_integers_equal_naive_on_random_geometry",
    "tests/test_conv_algorithms.py::test_integers_equal_naive",
)
LAYER = "5x5 1-6 28 batch 8 (LeNet)"

BUILD = """
import runpy, sys
from torch.utils import cpp_extension

taken_over = dict(line.split("=", 1) for line in sys.stdin.read().splitlines())

def without(make):
    def make_rest(name, sources, **options):
        objects = options.pop("extra_objects", []) + [taken_over[s] for s in sources if s in taken_over]
        rest = [s for s in sources if s not in taken_over]
        print("compiled:", *rest)
        return make(name, rest, extra_objects=objects, **options)
    return make_rest

for make in ("CppExtension", "CUDAExtension"):
    setattr(cpp_extension, make, without(getattr(cpp_extension, make)))
sys.argv = ["setup.py", "--quiet", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
"""setup.py, but that sources whose objects are there are not compiled."""

SHOW = f"""
import torch, convext
print(convext.algorithms("conv2d"))
x, w = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
print(convext.explain("conv2d", x, w, algorithm="{NAME}"))
"""


@dataclass(frozen=True)
class Added:
    compiled: list[str]
    """Sources that had to be."""
    algorithms: list[str]
    """The table, as the copy's convext.algorithms has it."""
    explanation: str
    tests: str
    """What pytest says at the end."""
    milliseconds: dict[str, float]
    """The benchmark's contiguous rows of convext for LAYER: algorithm -> time."""


def copy_tree(to: Path) -> None:
    """The parts of the source tree that a build, tests and a benchmark need."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "results")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, to / part, ignore=ignore)
        else:
            shutil.copy2(ROOT / part, to / part)


def add_algorithm(tree: Path) -> None:
    """The kernel file, the declaration, the line in the table."""
    shutil.copy2(Path(__file__).with_name(f"conv_{NAME}.cpp"), tree / KERNEL)
    for name, after, text in EDITS:
        source = (tree / name).read_text()
        if source.count(after) != 1:
            raise ValueError(f"{name}: expected {after!r} once, found it {source.count(after)} times")
        (tree / name).write_text(source.replace(after, after + text))


def objects() -> dict[str, str]:
    """Source -> object of the tree's own build, but for the table's and those older than their source."""
    found = {}
    for path in sorted(ROOT.glob("build/temp.*/csrc/**/*.o")):
        stem = Path(*path.relative_to(ROOT / "build").parts[1:]).with_suffix("")
        for suffix in (".cpp", ".cu"):
            source = stem.with_suffix(suffix)
            if not (ROOT / source).is_file() or source.as_posix() == TABLE:
                continue
            if path.stat().st_mtime >= (ROOT / source).stat().st_mtime:
                found[source.as_posix()] = str(path)
    return found


def python(tree: Path, *arguments: str, given: str = "") -> str:
    """What this interpreter prints, run in the tree. Raises RuntimeError with all of it where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["OMP_NUM_THREADS"] = "1"
    process = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, input=given, text=True, capture_output=True
    )
    if process.returncode != 0:
        raise RuntimeError(f"python {' '.join(arguments)[:200]} failed:\n{process.stdout}\n{process.stderr}")
    return process.stdout


def benchmark(tree: Path) -> dict[str, float]:
    """Milliseconds of convext's algorithms for LAYER, contiguous and forward, as benchmarks.run measures them."""
    options = ("--threads", "1", "--directions", "forward", "--output", "result.json", "--layers", LAYER, "--quick")
    python(tree, "-m", "benchmarks.run", *options)
    (row,) = json.loads((tree / "result.json").read_text())["rows"]
    rows: list[dict[str, Any]] = [c for c in row["contenders"] if c["library"] == "convext" and "seconds" in c]
    return {c["variant"]: 1e3 * c["seconds"] for c in rows if c["layout"] == "contiguous"}


def main() -> Added:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        add_algorithm(tree)
        print(f"{KERNEL}, a declaration and a line in the table: building ...", flush=True)
        given = "\n".join(f"{source}={path}" for source, path in objects().items())
        said = python(tree, "-c", BUILD, given=given)
        (compiled,) = [line.split()[1:] for line in said.splitlines() if line.startswith("compiled:")]
        print(f"compiled {' and '.join(compiled) if len(compiled) < 4 else f'{len(compiled)} files'}")
        table, _, explanation = python(tree, "-c", SHOW).partition("\n")
        print(f"convext.algorithms('conv2d'): {table}\n{explanation}", end="", flush=True)
        wanted = f"{NAME} and baseline and (integers or random) or declared or written"  # it has no instruction sets
        tests = python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted, *TESTS)
        tests = tests.strip().splitlines()[-1]
        print(f"its tests: {tests}", flush=True)
        milliseconds = benchmark(tree)
        print(f"the benchmark, {LAYER}, ms:")
        for name, time in milliseconds.items():
            print(f"  {name:<10}{time:>8.3f}")
    names = [name.strip("[]' ") for name in table.split(",")]
    return Added(compiled, names, explanation, tests, milliseconds)


if __name__ == "__main__":
    main()
