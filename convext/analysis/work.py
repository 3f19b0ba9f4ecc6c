"""What an operation computes: multiply-adds, additions, comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from convext.analysis.algorithm_cost import conv_sizes
from convext.analysis.fields import adaptive
from convext.analysis.visit import Operation, tensors_in
from convext.arguments import expand
from convext.choice import CONVOLUTIONS


@dataclass(frozen=True)
class Work:
    """What an operation computes."""

    multiply_adds: int = 0
    additions: int = 0
    comparisons: int = 0
    note: str = ""


def _window_work(comparing: bool, out: int, window: int) -> Work:
    steps = out * (window - 1)
    return Work(comparisons=steps) if comparing else Work(additions=steps)


def _first(result: Any) -> Tensor:
    return tensors_in(result)[0]


def _matmul(a: Tensor, out: Tensor) -> int:
    return out.numel() * a.shape[-1]


def _attention(operation: Operation) -> Work:
    """Scores q k^T and their sums over v."""
    q, k, v = (operation.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    batch = math.prod(q.shape[:-2])
    return Work(batch * q.shape[-2] * k.shape[-2] * (q.shape[-1] + v.shape[-1]))


def _multi_head(operation: Operation) -> Work:
    """Projections of query, key, value and result, and :func:`_attention`; tensors (places, batch, features)."""
    q, k, v = (operation.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    width, batch = q.shape[-1], q.shape[1] if q.dim() == 3 else 1
    projected = (q.numel() + k.numel() + v.numel()) * width + q.numel() * width
    return Work(projected + 2 * batch * q.shape[0] * k.shape[0] * width)


_RECURRENT = [f"{name}{cell}" for name in ("gru", "lstm", "rnn_relu", "rnn_tanh") for cell in ("", "_cell")]
_UNCOUNTED = ("bilinear", "cdist", "einsum", "tensordot", "unfold", "fold", *_RECURRENT)
_MATRIX = ("matmul", "mm", "bmm", "mv", "dot", "linear", "rmatmul")


def work_of(operation: Operation) -> Work:
    name = operation.name
    dims = int(name[-2]) if name[-1:] == "d" and name[-2:-1] in ("1", "2", "3") else 0
    out = _first(operation.result)
    input = operation.argument(0, "input")
    if name in CONVOLUTIONS:
        return Work(conv_sizes(operation, dims).multiply_adds)
    if name in _MATRIX:
        return Work(_matmul(input, out) if name != "rmatmul" else _matmul(operation.args[1], out))
    if name in ("addmm", "baddbmm", "addmv", "addbmm"):
        return Work(_matmul(operation.args[1], out))
    if name == "scaled_dot_product_attention":
        return _attention(operation)
    if name == "multi_head_attention_forward":
        return _multi_head(operation)
    if name in _UNCOUNTED:
        return Work(note=f"the multiply-adds of {name} are not counted")
    if not isinstance(input, Tensor):
        return Work()
    stem = name[:-2] if dims else name
    if stem in ("max_pool", "avg_pool", "fractional_max_pool"):
        window = math.prod(expand(name, "kernel_size", operation.argument(1, "kernel_size"), dims))
        return _window_work("max" in stem, out.numel(), window)
    if stem == "lp_pool":
        window = math.prod(expand(name, "kernel_size", operation.argument(2, "kernel_size"), dims))
        return _window_work(False, out.numel(), window)
    if name in ("global_avg_pool", "global_max_pool"):
        total = input.numel() - out.numel()
        return Work(comparisons=total) if "max" in name else Work(additions=total)
    if stem in ("adaptive_avg_pool", "adaptive_max_pool"):
        seen = [_adaptive_total(n, o) for n, o in zip(input.shape[-dims:], out.shape[-dims:], strict=True)]
        total = math.prod(seen) * math.prod(out.shape[:-dims]) - out.numel()
        return Work(comparisons=total) if "max" in stem else Work(additions=total)
    if name in ("mean", "sum"):
        return Work(additions=input.numel() - out.numel())
    if name in ("amax", "amin"):
        return Work(comparisons=input.numel() - out.numel())
    return Work()


def _adaptive_total(size: int, out: int) -> int:
    """Places of all adaptive windows of one axis together."""
    step = adaptive(size, out)
    return sum(len(step.places(i)) for i in range(out))
