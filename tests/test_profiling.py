"""convext.profile(): named phases of the CPU kernels, on every thread, and nothing while nobody asks."""

from __future__ import annotations

import time

import pytest
import torch

import convext
from convext import _C, Profile
from convext.profiling import PhaseTime
from tests import numerics


def run(dtype: torch.dtype = torch.float32, batch: int = 2) -> None:
    x, w = torch.randn(batch, 16, 40, 40, dtype=dtype), torch.randn(24, 16, 3, 3, dtype=dtype)
    convext.functional.conv2d(x, w, padding=1, algorithm="im2col")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_phases_are_named_and_timed(dtype: torch.dtype) -> None:
    start = time.perf_counter_ns()
    with numerics.threads(1), convext.profile() as p:
        assert p.phases == []
        run(dtype)
    wall = time.perf_counter_ns() - start
    assert p.nanoseconds().keys() >= {"unfold", "gemm"}
    assert ("narrow" in p.nanoseconds()) == (dtype == torch.bfloat16)
    assert {phase.thread for phase in p.phases} == {0}
    assert all(phase.nanoseconds > 0 and phase.calls > 0 for phase in p.phases)
    assert sum(p.nanoseconds().values()) <= wall


def test_nothing_is_recorded_outside() -> None:
    run()
    with convext.profile() as p:
        pass
    run()
    assert p.phases == []
    assert str(p) == "no phases were recorded"
    with numerics.threads(1), convext.profile() as once:
        run()
    with numerics.threads(1), convext.profile() as twice:
        run()
        run()
    counts = [{phase.name: phase.calls for phase in q.phases} for q in (once, twice)]
    assert counts[1]["gemm"] == 2 * counts[0]["gemm"]  # every block starts from nothing


def test_threads_are_told_apart() -> None:
    for _ in range(50):  # a thread that is late to wake may find nothing left to do
        with numerics.threads(2), convext.profile() as p:
            for _ in range(100):
                run(batch=8)
        gemm = [phase for phase in p.phases if phase.name == "gemm"]
        if len(gemm) == 2:
            break
    assert sorted(phase.thread for phase in gemm) == list(range(len(gemm)))
    assert len(gemm) == 2
    assert p.nanoseconds()["gemm"] == sum(phase.nanoseconds for phase in gemm)


def test_profiles_do_not_nest_and_end_with_their_block() -> None:
    with convext.profile(), pytest.raises(RuntimeError, match="already recording"), convext.profile():
        pass
    with pytest.raises(KeyError), convext.profile():
        raise KeyError
    assert _C.start_phases()
    assert _C.stop_phases() == []


def test_table() -> None:
    profile = Profile(
        [PhaseTime("gemm", 0, 3_000_000, 5), PhaseTime("pack", 0, 2_000_000, 1), PhaseTime("gemm", 1, 5_000_000, 4)]
    )
    assert str(profile).splitlines() == [
        "phase          ms      %     calls  threads",
        "gemm        8.000   80.0         9  2",
        "pack        2.000   20.0         1  1",
    ]
