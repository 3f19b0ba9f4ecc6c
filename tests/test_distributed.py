"""Two processes on one machine compute what one does: tests/processes.py, each of its checks a test here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

from tests import processes

RANKS = 2
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each rank said of each check."""
    results = tmp_path_factory.mktemp("distributed") / "results"
    command = [sys.executable, "-m", "tests.processes", str(results), str(RANKS)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)
    found = [Path(f"{results}.{rank}") for rank in range(RANKS)]
    assert all(path.exists() for path in found), done.stderr[-4000:]
    return [json.loads(path.read_text()) for path in found]


@pytest.mark.parametrize("check", processes.CHECKS)
def test_two_processes(check: str, said: list[dict[str, str]]) -> None:
    for rank, results in enumerate(said):
        assert check in results, f"rank {rank} did not come so far"
        assert not results[check], f"rank {rank}: {results[check]}"
