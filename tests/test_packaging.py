"""The package's own papers: one version, one list of what is supported, an archive that holds what it is built from."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import convext

tomllib = pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text()))


def _supported(requirements: list[str], name: str) -> str:
    return next(entry.removeprefix(name) for entry in requirements if re.fullmatch(rf"{name}[<>=].*", entry))


def test_the_version_stands_once_and_heads_the_changelog(project: dict[str, Any]) -> None:
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "convext.__version__"}
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == convext.__version__
    assert len(set(heads)) == len(heads)


def test_what_is_supported_is_said_alike(project: dict[str, Any]) -> None:
    torch = _supported(project["project"]["dependencies"], "torch")
    assert _supported(project["build-system"]["requires"], "torch") == torch
    least = torch.removeprefix(">=")
    assert f"torch{torch} only" in (ROOT / "requirements-dev.txt").read_text()
    assert f"torch {least} or newer" in (ROOT / "README.md").read_text()
    assert f"| torch | {least} and newer |" in (ROOT / "docs" / "packaging.md").read_text()
    oldest = project["project"]["requires-python"].removeprefix(">=")
    wheels = project["tool"]["cibuildwheel"]["build"].split()
    assert wheels[0] == f"cp{oldest.replace('.', '')}-*"
    assert all(re.fullmatch(r"cp3\d\d-\*", wheel) for wheel in wheels)


def test_wheels_are_built_and_tested_with_what_the_build_needs(project: dict[str, Any]) -> None:
    settings = project["tool"]["cibuildwheel"]
    needed = {re.split("[<>=]", entry)[0] for entry in project["build-system"]["requires"]}
    assert needed <= set(settings["before-build"].split())
    tests = [word for word in settings["test-command"].split() if word.startswith("tests/")]
    assert tests
    assert all((ROOT / test).is_file() for test in tests)
    assert all((ROOT / source).exists() for source in settings["test-sources"])
    for library in ("libtorch*", "libc10*", "libgomp*"):
        assert f"--exclude '{library}'" in settings["linux"]["repair-wheel-command"]


def test_the_archive_holds_all_that_is_compiled_and_imported(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "setup.py",
        "--quiet",
        "egg_info",
        "--egg-base",
        str(tmp_path),
        "sdist",
        "-d",
        str(tmp_path),
    ]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    with tarfile.open(tmp_path / f"convext-{convext.__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "convext/py.typed",
        "convext/_C.pyi",
    }
    suffixes = (".cpp", ".h", ".inl", ".cu", ".cuh")
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in suffixes}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "convext").rglob("*.py")}
    assert wanted <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_without_kernels_the_import_says_what_to_look_at(tmp_path: Path) -> None:
    package = tmp_path / "convext"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "convext" / "__init__.py").read_text())
    torch = tmp_path / "torch.py"
    torch.write_text('__version__ = "9.9"\n')  # the message is made before anything else of torch is looked at
    said = subprocess.run(
        [sys.executable, "-c", "import convext"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert said.returncode == 1
    assert "ImportError: convext's kernels are not built, or not for torch 9.9" in said.stderr
