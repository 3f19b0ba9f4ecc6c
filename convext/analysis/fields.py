"""The arithmetic of receptive fields along one axis, in integers.

A :class:`Field` says, for place i of some tensor, which input places [first, last] it sees. It is periodic: period P
places see what the first P saw, ``advance`` input places further on. So the jump, input places per place, is the exact
fraction advance / P: a whole number after convolutions and poolings (P = 1), 1 / s after a transposed convolution or an
upsampling by s. A :class:`Step` says the same of one layer: which places of the layer's input an output place reads.

Windows are not cut off at the border: the input is taken to go on, so place 0 may start at a negative number.

For plain convolutions and poolings (P = 1 throughout) composition is the closed form of Araujo, Norris and Sim
(2019, Computing receptive fields of convolutional neural networks):

    size_l = size_(l-1) + (k_l - 1) d_l jump_(l-1)    = 1 + sum over l of (k_l - 1) d_l (product of strides before)
    jump_l = jump_(l-1) s_l
    start_l = start_(l-1) - before_l jump_(l-1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Window = tuple[int, int]
"""The first and the last input place seen, both included."""


def hull(windows: Iterable[Window | None]) -> Window | None:
    """The smallest window around all of them; None stands for one that sees nothing."""
    seen = [w for w in windows if w is not None]
    return (min(w[0] for w in seen), max(w[1] for w in seen)) if seen else None


@dataclass(frozen=True)
class Field:
    """Windows of the places of one axis: place i + m P sees ``table[i]`` moved by ``m advance``, P = len(table).

    ``advance`` None: there is no such rule; ``table`` has every place, and places outside see nothing.
    """

    table: tuple[Window | None, ...]
    advance: int | None

    def window(self, place: int) -> Window | None:
        """What ``place`` sees; None for nothing (a transposed convolution may leave gaps)."""
        if self.advance is None:
            return self.table[place] if 0 <= place < len(self.table) else None
        times, phase = divmod(place, len(self.table))
        seen = self.table[phase]
        return None if seen is None else (seen[0] + times * self.advance, seen[1] + times * self.advance)

    @property
    def jump(self) -> Fraction | None:
        """Input places per place; None where it varies."""
        return None if self.advance is None else Fraction(self.advance, len(self.table))

    @property
    def size(self) -> int:
        """Places of the largest window."""
        return max((w[1] - w[0] + 1 for w in self.table if w is not None), default=0)

    def whole(self, places: int) -> Field:
        """What all of ``places`` places together see, for every place of whatever comes of them."""
        if self.advance == 0 and len(self.table) == 1:
            return self
        return Field((hull(self.window(i) for i in range(places)),), 0)


IDENTITY = Field(((0, 0),), 1)


@dataclass(frozen=True)
class Step:
    """Which places of its input a layer reads: output place i + m P reads ``reads[i]`` moved by ``m advance``."""

    reads: tuple[tuple[int, ...], ...]
    advance: int

    def places(self, out: int) -> list[int]:
        times, phase = divmod(out, len(self.reads))
        return [place + times * self.advance for place in self.reads[phase]]

    def after(self, field: Field, places_out: int) -> Field:
        """The field of the layer's output, given that of its input."""
        if field.advance is None:
            return settled([hull(map(field.window, self.places(i))) for i in range(places_out)])
        period = len(field.table) // math.gcd(len(field.table), self.advance) * len(self.reads)
        table = tuple(hull(map(field.window, self.places(i))) for i in range(period))
        moved = field.advance * (self.advance * (period // len(self.reads)))
        return _shortest(Field(table, moved // len(field.table)))


def _shortest(field: Field) -> Field:
    """The same field with the shortest period."""
    period, advance = len(field.table), field.advance
    assert advance is not None
    for shorter in range(1, period):
        if period % shorter or advance * shorter % period:
            continue
        candidate = Field(field.table[:shorter], advance * shorter // period)
        if all(candidate.window(i) == w for i, w in enumerate(field.table)):
            return candidate
    return field


def settled(table: Sequence[Window | None]) -> Field:
    """A field given place by place; constant where all windows are equal."""
    return Field((table[0],), 0) if table and len(set(table)) == 1 else Field(tuple(table), None)


def union(fields: Sequence[Field], places: int) -> Field:
    """What places see through several branches that meet. Its jump is None where the branches' jumps differ, unless
    every place sees the same."""
    different = list(dict.fromkeys(fields))
    if len(different) == 1:
        return different[0]
    if len({f.jump for f in different}) == 1 and different[0].advance is not None:
        period = math.lcm(*(len(f.table) for f in different))
        moved = different[0].advance * (period // len(different[0].table))
        return _shortest(Field(tuple(hull(f.window(i) for f in different) for i in range(period)), moved))
    return settled([hull(f.window(i) for f in different) for i in range(places)])


# Steps ---------------------------------------------------------------------------------------------------------------


def convolution(kernel: int, stride: int, before: int, dilation: int) -> Step:
    """Output i reads i stride - before + t dilation for the taps t. Pooling likewise."""
    return Step((tuple(t * dilation - before for t in range(kernel)),), stride)


def transposed(kernel: int, stride: int, before: int, dilation: int) -> Step:
    """Output i reads j where i = j stride - before + t dilation for a tap t."""

    def reads(i: int) -> tuple[int, ...]:
        at = [i + before - t * dilation for t in reversed(range(kernel))]
        return tuple(a // stride for a in at if a % stride == 0)

    return Step(tuple(reads(i) for i in range(stride)), 1)


def shifted(by: int) -> Step:
    """Output i reads i + by."""
    return Step(((by,),), 1)


def strided(first: int, stride: int) -> Step:
    """Output i reads first + i stride."""
    return Step(((first,),), stride)


@lru_cache(maxsize=256)
def adaptive(size: int, out: int) -> Step:
    """Output i reads from floor(i size / out) to before ceil((i + 1) size / out), as adaptive pooling does."""
    if out == 1:
        return Step((tuple(range(size)),), 0)
    common = math.gcd(size, out) or 1
    period = out // common
    return Step(tuple(tuple(range(i * size // out, -(-(i + 1) * size // out))) for i in range(period)), size // common)


def resampled(size: int, out: int, scale: Fraction | None, source: Callable[[int, Fraction], Iterable[int]]) -> Step:
    """Output i reads ``source(i, ratio)``, places before clamping, with ratio = input places per output place."""
    ratio = Fraction(size, out) if scale is None else 1 / scale
    return Step(tuple(tuple(source(i, ratio)) for i in range(ratio.denominator)), ratio.numerator)


def nearest(i: int, ratio: Fraction) -> Iterable[int]:
    return (math.floor(i * ratio),)


def nearest_exact(i: int, ratio: Fraction) -> Iterable[int]:
    return (math.floor((i + Fraction(1, 2)) * ratio),)


def linear(i: int, ratio: Fraction) -> Iterable[int]:
    """Half-pixel centres: the places on both sides of (i + 1/2) ratio - 1/2."""
    at = (i + Fraction(1, 2)) * ratio - Fraction(1, 2)
    return (math.floor(at), math.ceil(at))


def cubic(i: int, ratio: Fraction) -> Iterable[int]:
    at = (i + Fraction(1, 2)) * ratio - Fraction(1, 2)
    if at.denominator == 1:
        return (int(at),)
    return range(math.floor(at) - 1, math.floor(at) + 3)


def aligned(i: int, ratio: Fraction) -> Iterable[int]:
    """Corners aligned: the places on both sides of i ratio."""
    return (math.floor(i * ratio), math.ceil(i * ratio))
