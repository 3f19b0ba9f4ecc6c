"""Threads are really used: a build without OpenMP would compute the same bits on one of them, and only be slow."""

from __future__ import annotations

import pytest

from convext import _C
from tests import numerics


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tasks_are_shared_by_all_threads(count: int) -> None:
    with numerics.threads(count):
        assert _C.max_threads() == count
        shares = _C.tasks_per_thread(60)
    assert shares == [60 // count] * count


def test_no_task_is_lost_or_done_twice() -> None:
    with numerics.threads(3):
        for tasks in (0, 1, 2, 3, 4, 61):
            assert sum(_C.tasks_per_thread(tasks)) == tasks
