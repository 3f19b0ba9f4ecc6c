"""What analyses run a model on, and how: an example or its shape, in eval mode, left as it was found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from convext.arguments import is_integer


def examples_of(op: str, model: Any, example: Any) -> tuple[Any, ...]:
    """The model's arguments: a tensor, a tuple of arguments, or the whole shape (n, c, ...) of one, of which random
    values are made in the dtype and on the device of the model's first floating parameter or buffer. TypeError for
    anything else."""
    if isinstance(example, Tensor):
        return (example,)
    if isinstance(example, Sequence) and not isinstance(example, str) and len(example) > 0:
        if any(isinstance(v, Tensor) for v in example):
            return tuple(example)
        if all(is_integer(v) for v in example):
            return (torch.randn(tuple(example), **kind_of(model)),)
    raise TypeError(
        f"{op}: example must be a tensor, a tuple of the model's arguments or a shape (n, c, ...), got {example!r}"
    )


def kind_of(model: Any) -> dict[str, Any]:
    """dtype and device of a model's first floating parameter or buffer; torch's defaults where there is none."""
    if isinstance(model, torch.nn.Module):
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point():
                return {"dtype": tensor.dtype, "device": tensor.device}
    return {"dtype": torch.get_default_dtype(), "device": torch.device("cpu")}


@contextmanager
def in_eval(model: Any) -> Iterator[None]:
    """The model in eval mode, and every module of it back in the mode it was in."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
