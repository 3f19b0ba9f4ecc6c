"""One run of a model, watched: which layers ran, and which operations in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convext.analysis.example import in_eval

_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)


def is_layer(module: torch.nn.Module) -> bool:
    """Whether a module is one layer: has no parts, or is an attention layer of torch.nn, whose part is not called."""
    if isinstance(module, _CONTAINERS):
        return False
    return next(module.children(), None) is None or isinstance(module, torch.nn.MultiheadAttention)


@contextmanager
def layer_hooks(
    model: torch.nn.Module,
    before: Callable[[str, torch.nn.Module, Any], None],
    after: Callable[[str, torch.nn.Module, Any, Any], None],
) -> Iterator[None]:
    """Calls ``before(name, layer, args)`` and ``after(name, layer, args, result)`` around every layer of the model."""
    handles = []
    try:
        for name, module in model.named_modules():
            if not is_layer(module):
                continue

            def enter(layer: torch.nn.Module, args: Any, name: str = name) -> None:
                before(name, layer, args)

            def leave(layer: torch.nn.Module, args: Any, result: Any, name: str = name) -> None:
                after(name, layer, args, result)

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for one in value for t in tensors_in(one)] if isinstance(value, tuple | list) else []


@dataclass
class Operation:
    """A call of torch or convext that computed something: no view, no question about sizes."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    ours: bool
    """Whether a function of convext was called."""
    seconds: float

    def argument(self, at: int, name: str, default: Any = None) -> Any:
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)


@dataclass
class Visit:
    """A layer's call (``layer``), or an operation outside of any layer (None)."""

    name: str
    layer: torch.nn.Module | None
    inputs: list[Tensor]
    outputs: list[Tensor] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


def _where(tensor: Tensor) -> int:
    """Equal for tensors that share memory."""
    return id(tensor) if tensor.layout != torch.strided else tensor.untyped_storage()._cdata


def _plain_name(function: Any) -> str:
    name = str(getattr(function, "__name__", function))
    if name == "__get__":  # a property, of which the name is with its descriptor
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    return name


def _in_place(name: str, kwargs: dict[str, Any]) -> bool:
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True


class _Watch(TorchFunctionMode):
    """Notes every operation that computes, with the layer that it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: list[Visit] = []
        self.inside: list[Visit] = []
        self.parents: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - start
        if tensors_in(result):
            self._note(func, args, kwargs, result, seconds)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, seconds: float) -> None:
        name = _plain_name(func)
        in_place = (
            (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE or kwargs.get("inplace") is True
        )
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        held = {_where(t) for t in inputs}
        if not in_place and inputs and all(_where(t) in held for t in outputs):
            return
        ours = str(getattr(func, "__module__", "")).startswith("convext.")
        operation = Operation(name.strip("_"), tuple(args), dict(kwargs), result, ours, seconds)
        if self.inside:
            self.inside[0].operations.append(operation)
            return
        parent = f"{self.parents[-1]}." if self.parents and self.parents[-1] else ""
        self.visits.append(Visit(f"{parent}{operation.name}", None, inputs, outputs, [operation]))


_IN_PLACE = ("__iadd__", "__isub__", "__imul__", "__itruediv__")


def watch(model: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Visit]:
    """Runs a model once, in eval mode and without gradients, and returns the calls of its layers, and the operations
    between them, in order."""
    mode = _Watch()

    def before(name: str, layer: torch.nn.Module, args: Any) -> None:
        mode.inside.append(Visit(name or type(layer).__name__, layer, tensors_in(args)))

    def after(name: str, layer: torch.nn.Module, args: Any, result: Any) -> None:
        visit = mode.inside.pop()
        visit.outputs = tensors_in(result)
        if not mode.inside:
            mode.visits.append(visit)

    module = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
    handles = []
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it hides what is computed
        for name, part in module.named_modules():
            if not is_layer(part):
                handles.append(part.register_forward_pre_hook(lambda *_, name=name: mode.parents.append(name)))
                handles.append(part.register_forward_hook(lambda *_: mode.parents.pop() and None))
        with in_eval(model), torch.no_grad(), layer_hooks(module, before, after), mode:
            model(*arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    return mode.visits
