"""How the benchmark measures: contenders in turns, results checked first, against bounds of the machine.

Accuracy. A sum of K products in floating point, in whatever order and with or without fused multiply-adds, differs from
the exact sum by at most gamma_K * sum |x||w| with gamma_K = K u / (1 - K u) and u = 2^-24 in float32 (Higham, Accuracy
and Stability of Numerical Algorithms, section 3.1). That bound is loose for long sums, so contenders that claim
exactness are also run on small integers, where every partial sum is exact and the result must be equal.

Speed. Contenders take turns in random order, so that a drift of the clock meets all of them alike; medians count. A
layer is bound by arithmetic or by memory, whichever takes longer at the measured peak: multiply-adds in registers, and
the copy of a tensor of the layer's size (convext/machine.py).
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cores import cores_of
from convext.machine import Peaks as Peaks

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""The largest relative error of one rounding."""

TURN_SECONDS = 0.5e-3
"""A turn repeats a shorter call until it has taken about this long."""
WARM_SECONDS = 5e-3
"""Before the timed calls of a turn, one untimed call where a call is shorter than this."""
MIN_TURNS, MAX_TURNS = 3, 50
SPAN_SECONDS = 0.05
"""Between two questions whether anything disturbs."""
MOVED_SECONDS = 0.02
"""Waited where something does; cores that are idle may be moved."""
PATIENCE = 3.0
"""Times the budget: after that, disturbed turns count."""

Call = Callable[[], Any]
"""Returns the result, a tensor, where it is verified."""


# Accuracy ----------------------------------------------------------------------------------------------------------


class Mismatch(AssertionError):
    """A contender's result is not what it should be; it must not be timed."""


def gamma(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """The factor gamma_K of the bound for a sum of ``terms`` products in float32 or float64."""
    unit = UNIT_ROUNDOFF[dtype]
    return terms * unit / (1 - terms * unit)


@dataclass(frozen=True)
class Reference:
    """What a result must be: ``value`` in float64, ``magnitude`` the same sum over absolute values, ``terms`` its
    length (0: no rounding at all, the result must be equal), ``dtype`` the type it is stored in."""

    value: Tensor
    magnitude: Tensor
    terms: int
    dtype: torch.dtype = torch.float32

    def bound(self, factor: float) -> Tensor:
        """Of the error, per element. 16-bit types are summed in float32 and rounded once more at the store; the
        float64 reference is itself a rounded sum."""
        wide = self.dtype if self.dtype in (torch.float32, torch.float64) else torch.float32
        own = gamma(self.terms, torch.float64) if self.dtype == torch.float64 else 0.0
        bound = factor * (gamma(self.terms, wide) + own) * self.magnitude
        if self.dtype == wide or self.terms == 0:
            return bound
        info = torch.finfo(self.dtype)
        return bound + UNIT_ROUNDOFF[self.dtype] * (self.value.abs() + bound) + info.tiny * info.eps / 2

    def of_tiles(self, reach: int = 8) -> Reference:
        """For Winograd, which computes a tile as one: the magnitude of an element is the greatest within ``reach``
        places of it along every spatial dimension, as far as its largest tile goes at a stride of 2."""
        greatest = self.magnitude
        for axis in range(2, greatest.dim()):
            left = reach
            while left > 0:
                step = min(left, reach - left + 1)
                left -= step
                size = greatest.shape[axis] - step
                if size > 0:
                    wider = greatest.clone()
                    for to, source in ((0, step), (step, 0)):
                        part = wider.narrow(axis, to, size)
                        torch.maximum(part, greatest.narrow(axis, source, size), out=part)
                    greatest = wider
        return replace(self, magnitude=greatest)


@dataclass(frozen=True)
class Accuracy:
    """``of_bound``: the largest error as a share of what was allowed (0 to 1); ``relative``: ||error|| / ||value||."""

    of_bound: float
    relative: float


def check(result: Tensor, reference: Reference, factor: float = 1.0, norm_limit: float = math.inf) -> Accuracy:
    """Holds a result to its reference within ``factor`` times its bound, and its norm-wise error to ``norm_limit``.
    Raises Mismatch, for NaN too."""
    value = reference.value
    if result.shape != value.shape:
        raise Mismatch(f"result has shape {list(result.shape)}, expected {list(value.shape)}")
    error = (result.double() - value).abs()
    bound = reference.bound(factor)
    if not bool((error <= bound).all()):
        wrong = ~(error <= bound)
        at = tuple(wrong.nonzero()[0].tolist())
        raise Mismatch(
            f"{int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at {at}: "
            f"got {result[at].item():.9g}, expected {value[at].item():.9g} within {bound[at].item():.3g}"
        )
    share = torch.where(error > 0, error / bound, 0.0)
    norm = value.norm().item()
    relative = error.norm().item() / norm if norm else 0.0
    if relative > norm_limit:
        raise Mismatch(f"the norm-wise error is {relative:.3g}, allowed is {norm_limit:.3g}")
    return Accuracy(share.max().item() if share.numel() else 0.0, relative)


def check_equal(result: Tensor, value: Tensor) -> None:
    """Holds a result computed from small integers to equality. Raises Mismatch."""
    check(result, Reference(value, value.abs(), 0))


# Turns -------------------------------------------------------------------------------------------------------------


def seconds_of(call: Call, repeats: int) -> float:
    """Seconds per call over ``repeats`` calls. A call in another process measures itself (``seconds``)."""
    elsewhere = getattr(call, "seconds", None)
    if elsewhere is not None:
        return float(elsewhere(repeats))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median over ``turns`` turns, and the quartiles."""

    median: float
    lower: float
    upper: float
    turns: int
    disturbed: int = 0
    """Of the turns, how many count although the cores were not at their best: they would not become so."""

    @staticmethod
    def of(samples: Sequence[float], disturbed: int = 0) -> Timing:
        lower, middle, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return Timing(middle, lower, upper, len(samples), disturbed)


def take_turns(
    calls: Mapping[str, Call],
    budget: float,
    rng: random.Random,
    warm_seconds: float = WARM_SECONDS,
    undisturbed: Callable[[], bool] | None = None,
) -> dict[str, Timing]:
    """Times every call within about ``budget`` seconds in all: rounds in which each takes a turn, in random order.

    A turn of a call shorter than ``warm_seconds`` begins with one that is not timed: others have had the caches, and
    threads of its own have to be woken up.

    A call that is much slower than the others takes part in fewer rounds, spread evenly, but never in fewer than
    MIN_TURNS.

    ``undisturbed``, asked every SPAN_SECONDS, says whether the machine is as it should be (by default, whether torch's
    threads have its cores to themselves: cores.py). Turns between two answers are taken again unless both were yes, for
    as long as PATIENCE times ``budget``; then they count as they are.
    """
    if undisturbed is None:
        undisturbed = cores_of(torch.get_num_threads()).good
    rough = {name: seconds_of(call, 1) for name, call in calls.items()}
    repeats = {name: max(1, min(100, math.ceil(TURN_SECONDS / t))) for name, t in rough.items()}
    share = budget / max(1, len(calls))
    turns = {}
    for name, t in rough.items():
        warm = t if t < warm_seconds else 0.0
        turns[name] = max(MIN_TURNS, min(MAX_TURNS, int(share / (t * repeats[name] + warm))))
    rounds = max(turns.values(), default=0)
    waiting: list[str] = []  # the last comes first
    for number in range(rounds):
        present = [name for name in calls if number * turns[name] % rounds < turns[name]]
        rng.shuffle(present)
        waiting = present + waiting
    samples: dict[str, list[float]] = {name: [] for name in calls}
    disturbed = dict.fromkeys(calls, 0)
    start = asked = time.perf_counter()
    good = undisturbed()
    span: list[tuple[str, float]] = []
    while waiting:
        name = waiting.pop()
        if rough[name] < warm_seconds:
            seconds_of(calls[name], 1)
        span.append((name, seconds_of(calls[name], repeats[name])))
        if waiting and time.perf_counter() < asked + SPAN_SECONDS:
            continue
        before, good = good, undisturbed()
        counts = before and good
        if counts or time.perf_counter() > start + PATIENCE * budget:
            for name, seconds in span:
                samples[name].append(seconds)
                disturbed[name] += not counts
        else:
            waiting.extend(name for name, _ in reversed(span))
        while not good and time.perf_counter() < start + PATIENCE * budget:
            time.sleep(MOVED_SECONDS)
            good = undisturbed()
        span = []
        asked = time.perf_counter()
    return {name: Timing.of(values, disturbed[name]) for name, values in samples.items()}


def disturbed_share(timings: Mapping[str, Timing]) -> float:
    """Of all turns, how many count although the cores were not at their best."""
    return sum(t.disturbed for t in timings.values()) / max(1, sum(t.turns for t in timings.values()))


def geometric_mean(values: Sequence[float]) -> float:
    """nan for no values."""
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else math.nan


# Memory --------------------------------------------------------------------------------------------------------------


def peak_bytes(call: Call) -> int:
    """The most that torch's CPU allocator holds at once during a call, beyond what it held before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
