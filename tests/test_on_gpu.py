"""Gate 3's own logic, where there is no GPU: that it says what is missing, and what it would run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from convext import _C
from tests import on_gpu


@pytest.mark.parametrize("program", ["tests.on_gpu", "benchmarks.gpu"])
def test_it_fails_with_one_message_where_something_is_missing(program: str) -> None:
    if not on_gpu.missing():
        pytest.skip("nothing is missing here")
    done = subprocess.run([sys.executable, "-m", program], cwd=on_gpu.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs a GPU, and something is missing here" in done.stderr
    if torch.version.cuda is None:
        assert "is built without CUDA: install" in done.stderr
    if not _C.built_with_cuda():
        assert "CONVEXT_CUDA=1 make -B build" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_tool_runs_the_lean_tests() -> None:
    every = on_gpu.steps("sanitizer", "  --kernel-regex arg")
    assert [name for name, _, _ in every] == ["tests", *on_gpu.TOOLS]
    assert every[0][1][-2:] == ["-m", "gpu"]
    for name, command, environment in every[1:]:
        assert command[:3] == ["sanitizer", "--tool", name]
        assert command[-2:] == ["-m", "gpu and lean"]
        assert ("kns=convext" in command) == (name != "initcheck")
        assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert not any("kns=convext" in command for _, command, _ in on_gpu.steps("sanitizer", "no such option"))


def test_a_failed_step_fails_the_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, on_gpu.FAULT if "racecheck" in command else 0, "", "")

    monkeypatch.setattr(on_gpu, "missing", lambda with_sanitizer=True: [])
    monkeypatch.setattr(on_gpu, "sanitizer", lambda: "sanitizer")
    monkeypatch.setattr(on_gpu.subprocess, "run", run)
    assert on_gpu.main([]) == 1
    assert len(ran) == 1 + 1 + len(on_gpu.TOOLS)  # --help, the tests, the tools
    assert "failed: racecheck (status 9, see above what it found)" in capsys.readouterr().out
    assert on_gpu.main(["memcheck"]) == 0
    assert on_gpu.main(["valgrind"]) == 2
