"""Threads are really used: a build without OpenMP would compute the same bits on one of them, and only be slow."""

from __future__ import annotations

import pytest

from convext import _C
from tests import numerics


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tasks_are_shared_by_all_threads(count: int) -> None:
    with numerics.threads(count):
        assert _C.max_threads() == count
        done = _C.parts_per_thread(60, microseconds=[2000] * count)
    assert len(done) == count
    assert sum(done) == 60
    assert min(done) > 0


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_slow_thread_leaves_its_tasks_to_others(slow: int) -> None:
    """A third of the tasks is its share; it is still at its first when the others are done with theirs."""
    with numerics.threads(3):
        done = _C.parts_per_thread(30, microseconds=[400_000 if thread == slow else 1000 for thread in range(3)])
    assert sum(done) == 30
    assert done[slow] <= 2


def test_no_task_is_lost_or_done_twice() -> None:
    with numerics.threads(3):
        for tasks in (0, 1, 2, 3, 4, 61):
            assert sum(_C.parts_per_thread(tasks)) == tasks


@pytest.mark.parametrize("slow", [0, 1])
def test_a_slow_thread_leaves_parts_of_its_task_to_others(slow: int) -> None:
    """Each thread has one task; the slow one is at the second part of its own when the other is done."""
    with numerics.threads(2):
        done = _C.parts_per_thread(2, 30, [40_000 if thread == slow else 1000 for thread in range(2)])
    assert sum(done) == 60
    assert done[slow] <= 4


def test_a_task_alone_is_not_shared() -> None:
    """It was found too small for a second thread."""
    with numerics.threads(3):
        assert sorted(_C.parts_per_thread(1, 20, [1000] * 3)) == [0, 0, 20]


def test_no_part_is_lost_or_done_twice() -> None:
    with numerics.threads(3):
        for _ in range(200):
            assert sum(_C.parts_per_thread(5, 7)) == 35
        assert sum(_C.parts_per_thread(3, 0)) == 0
