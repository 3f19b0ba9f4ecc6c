"""Whether threads run on cores of their own that are near each other.

A virtual machine's cores are moved about: for seconds on end two of them may be hyperthreads of one core (half the
arithmetic each), or lie on dies without a common cache (a cache line takes 160 ns from one to the other, not 27, and
what layers hand on in small pieces, twice as long). Neither is a property of what is measured, and medians do not cure
it: whoever has more of his turns in such a time loses. So turns of several threads count if the probe before them and
the one after (cores.c) find the cores as they are at their best in this process; otherwise they are taken again
(``take_turns`` of timing.py).
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from convext.machine import compiled

PASSES, ROUNDS = 1000, 20_000
"""Of a number handed around, and of multiply-adds: about 0.1 ms each."""
PROBE_SECONDS = 0.006
"""Probed again and again for so long, the best counts: threads spin for some milliseconds after their work, on the
cores that are probed. To wait for their end would leave the cores idle, and idle cores are moved."""
SLACK = 1.7
"""Times the best seen that a probe may take."""


@dataclass
class Cores:
    """The cores of ``threads`` threads, and the best that was seen of them."""

    threads: int
    passing: float = field(default=math.inf, init=False)
    """Seconds that a cache line takes from core to core."""
    adding: float = field(default=math.inf, init=False)
    """Seconds of a probe's multiply-adds on the slowest core."""

    def probe(self) -> tuple[float, float] | None:
        """Seconds of passing and of adding now. None where that cannot be known: one thread, fewer cores than threads,
        no C compiler, or no way to pin threads to cores."""
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        library = compiled(Path(__file__).with_name("cores.c"))
        if not 1 < self.threads <= len(usable) or library is None:
            return None
        cores = (ctypes.c_int * self.threads)(*usable[: self.threads])
        passing, adding = ctypes.c_double(), ctypes.c_double()
        arguments = (cores, self.threads, ctypes.c_long(PASSES), ctypes.c_long(ROUNDS))
        found = []
        end = time.perf_counter() + PROBE_SECONDS
        while time.perf_counter() < end:
            if library.probe_cores(*arguments, ctypes.byref(passing), ctypes.byref(adding)) != 0:
                return None
            found.append((passing.value, adding.value))
        least = min(a for _, a in found)
        return min(p for p, a in found if a <= SLACK * least), least  # nearest while no two shared a core

    def good(self) -> bool:
        """Whether the cores are as good as they have been; True where that cannot be known."""
        found = self.probe()
        if found is None:
            return True
        passing, adding = found
        if adding > SLACK * self.adding:  # they share a core
            return False
        if adding * SLACK < self.adding:  # they shared one until now, whose halves are nearer than cores ever are
            self.passing = math.inf
        self.adding = min(self.adding, adding)
        self.passing = min(self.passing, passing)
        return passing <= SLACK * self.passing


@functools.cache
def cores_of(threads: int) -> Cores:
    """The cores as this process knows them."""
    return Cores(threads)
