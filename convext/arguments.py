"""Checking and spelling out the arguments that functions and layers are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

Ints: TypeAlias = int | Sequence[int]


def require(op: str, name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Raises TypeError, naming argument, expectation and value, unless value is of the kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{op}: {name} must be {expected}, got {name}={value!r} ({type(value).__name__})")


def require_tensor(op: str, name: str, value: Any) -> None:
    """Raises TypeError unless value is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")


def is_integer(value: object) -> bool:
    """Whether value is an int, or a symbolic one under torch.compile (bool is not)."""
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def expand(op: str, name: str, value: Ints, spatial: int) -> list[int]:
    """One int per spatial dimension from an int or a sequence of 1 or ``spatial`` ints."""
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        return [value] * spatial
    if isinstance(value, Sequence) and not isinstance(value, str) and all(is_integer(v) for v in value):
        if len(value) == spatial:
            return list(value)
        if len(value) == 1:
            return [value[0]] * spatial
        raise RuntimeError(f"{op}: {name} must be a single int or {spatial} ints, got {name}={tuple(value)}")
    raise TypeError(f"{op}: {name} must be an int or a sequence of ints, got {name}={value!r}")


def batched(op: str, input: Tensor, spatial: int) -> tuple[Tensor, bool]:
    """The input with a batch dimension, and whether it was given one here."""
    if input.dim() == spatial + 2:
        return input, False
    if input.dim() == spatial + 1:
        return input.unsqueeze(0), True
    raise RuntimeError(
        f"{op}: Expected {spatial + 1}D (unbatched) or {spatial + 2}D (batched) input, "
        f"got input of size {list(input.shape)}"
    )


def overridden(function: Callable[..., Any], arguments: tuple[Any, ...], *keyword_only: str) -> Any:
    """What an operand with a ``__torch_function__`` of its own answers, asked as torch's functions do; NotImplemented
    where there is none.

    ``arguments`` are all of the function's, the last of them those that it takes by keyword only.
    """
    if not has_torch_function(arguments):
        return NotImplemented
    positional = len(arguments) - len(keyword_only)
    keywords = dict(zip(keyword_only, arguments[positional:], strict=True))
    return handle_torch_function(function, arguments, *arguments[:positional], **keywords)
