"""Where a call's time goes: the named phases of the CPU algorithms, per thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from convext import _C


@dataclass(frozen=True)
class PhaseTime:
    """All passes of one thread through the phases of one name."""

    name: str
    thread: int
    """0, 1, ... in the order in which threads first went through a phase."""
    nanoseconds: int
    calls: int


@dataclass
class Profile:
    """What :func:`profile` recorded; empty until its block ends. ``str()`` of it is a table."""

    phases: list[PhaseTime] = field(default_factory=list)

    def nanoseconds(self) -> dict[str, int]:
        """Phase -> time, summed over threads, in the order in which the phases ended first."""
        total: dict[str, int] = {}
        for phase in self.phases:
            total[phase.name] = total.get(phase.name, 0) + phase.nanoseconds
        return total

    def __str__(self) -> str:
        total = self.nanoseconds()
        if not total:
            return "no phases were recorded"
        whole = max(sum(total.values()), 1)
        width = max(len("phase"), *map(len, total))
        lines = [f"{'phase':<{width}}  {'ms':>10}  {'%':>5}  {'calls':>8}  threads"]
        for name, nanoseconds in total.items():
            mine = [phase for phase in self.phases if phase.name == name]
            calls = sum(phase.calls for phase in mine)
            share = 100 * nanoseconds / whole
            lines.append(f"{name:<{width}}  {nanoseconds / 1e6:>10.3f}  {share:>5.1f}  {calls:>8}  {len(mine)}")
        return "\n".join(lines)


@contextmanager
def profile() -> Iterator[Profile]:
    """Records the phases of CPU kernels while its block runs, on all threads.

        with convext.profile() as p:
            layer(image)
        print(p)                 # a table
        p.nanoseconds()["gemm"]  # summed over threads

    One recording at a time: an inner one would end the outer, so nesting raises RuntimeError. Phases that nest count
    their time each. Algorithms without named phases record nothing.
    """
    if not _C.start_phases():
        raise RuntimeError("convext.profile() is already recording (expected one at a time)")
    result = Profile()
    try:
        yield result
    finally:
        result.phases = [PhaseTime(*phase) for phase in _C.stop_phases()]
