"""Models for inference: :func:`optimize` folds, fuses and packs what training needs apart.

``graph`` asks and changes traced graphs, ``fold`` and ``fuse`` hold the passes, ``modules`` the layers of the result,
``activations`` says which activations the kernels know, ``program`` runs the graph of the result.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.fx import GraphModule

from convext import _C
from convext.activations import Activation
from convext.convert import convert
from convext.inference import fold, fuse
from convext.inference.graph import flatten, record_examples, trace
from convext.inference.modules import Chain, ChannelScale, FusedConv, FusedLinear
from convext.inference.program import ProgramOf

__all__ = [
    "Activation",
    "Chain",
    "ChannelScale",
    "FusedConv",
    "FusedLinear",
    "OptimizationReport",
    "OptimizedModel",
    "optimize",
]

_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_PASSES: tuple[tuple[str, Callable[[GraphModule], int]], ...] = (
    ("dropouts and identities removed", fuse.remove_idle),
    ("convolutions and pools taken over", fuse.take_convolutions),
    ("linear layers taken over", fuse.take_linears),
    ("paddings merged", fold.merge_padding),
    ("normalisations folded", fold.fold_norms),
    ("normalisations left as a scale per channel", fold.scale_channels),
    ("epilogues fused", fuse.fuse_epilogues),
    ("concatenations split", fuse.split_concatenations),
    ("scalings in place", fuse.work_in_place),
    ("chains of layers", fuse.chain_layers),
)
_TRIALS = 9


@dataclass
class OptimizationReport:
    """What :func:`optimize` did."""

    changes: dict[str, int] = field(default_factory=dict)
    """How often each kind of change was made."""
    left: list[tuple[str, str, str]] = field(default_factory=list)
    """(name, type, reason) of each part of the model that could not be traced: its layers were only swapped."""
    memory_format: str = "contiguous"
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Of a call on the example in each memory format, where it was measured."""
    error: float = 0.0
    """``|y - y'| / |y|`` of the outputs on the example, y being the original model's."""

    def __str__(self) -> str:
        lines = [f"{count} {what}" for what, count in self.changes.items() if count]
        lines += [f"{name or 'the model'}: {kind} not traced: {reason}" for name, kind, reason in self.left]
        times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in self.milliseconds.items())
        lines.append(f"memory format {self.memory_format}" + (f" ({times})" if times else ""))
        lines.append(f"relative difference from the original on the example: {self.error:.2g}")
        return "\n".join(lines)


class OptimizedModel(torch.nn.Module):
    """The result of :func:`optimize`: an ordinary module for inference, called as the original was."""

    def __init__(self, body: torch.nn.Module, report: OptimizationReport) -> None:
        super().__init__()
        self.body = body
        self.report = report
        self._program = ProgramOf()
        self.train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        format = _FORMATS[self.report.memory_format]
        if format is not torch.contiguous_format:
            args = tuple(_laid_out(a, format) for a in args)
            kwargs = {name: _laid_out(a, format) for name, a in kwargs.items()}
        program = None if kwargs or is_dynamo_compiling() else self._program.get(self.body)
        before = _C.use_arena(True)
        try:
            if program is None or len(args) != program.inputs:
                result = self.body(*args, **kwargs)
            else:
                result = _C.run_program(program, self.body, *args)
        finally:
            _C.use_arena(before)
        return _each(result, Tensor.contiguous) if format is not torch.contiguous_format else result


def _laid_out(value: Any, format: torch.memory_format) -> Any:
    wanted = {torch.channels_last: 4, torch.channels_last_3d: 5}[format]
    if not isinstance(value, Tensor) or value.dim() != wanted:
        return value
    short = None if is_dynamo_compiling() else _C.channels_last(value)
    return value.contiguous(memory_format=format) if short is None else short


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _each(v, function) for name, v in value.items()}
    if isinstance(value, list):
        return [_each(v, function) for v in value]
    if type(value) is tuple:
        return tuple(_each(v, function) for v in value)
    return value


def optimize(
    model: torch.nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    memory_format: str = "auto",
    tolerance: float = 1e-4,
) -> OptimizedModel:
    """A copy of ``model`` made ready for inference; the model itself stays as it is.

    ``example``: an input, or the tuple of arguments, of a typical call. Batch normalisations are folded into the
    convolutions before (or, where that is exact, after) them; residual additions and activations become part of the
    convolution's kernel, paddings part of its padding; dropouts and identities go; pools are convext's; weights are
    packed. Parts that torch.fx cannot trace keep their code, and only their layers are swapped; the report (the
    attribute ``report`` of the result) names them with the reason. Other sizes and batches than the example's work as
    they do in the original.

    ``memory_format``: ``"contiguous"``, ``"channels_last"``, ``"channels_last_3d"``, or ``"auto"``: both are timed on
    the example, the faster is kept. Inputs are laid out so at the model's entry.

    The result is run on the example and compared with the original: RuntimeError if they differ by more than
    ``tolerance``, relative to the norm of the original's output. ValueError for an unknown memory format, TypeError
    for a model that is none. The result has no gradient for its weights; training goes on with the original.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"optimize: model must be a torch.nn.Module, got {type(model).__name__}")
    if memory_format != "auto" and memory_format not in _FORMATS:
        raise ValueError(f"optimize: memory_format must be one of {['auto', *_FORMATS]}, got {memory_format!r}")
    arguments = example if isinstance(example, tuple) else (example,)
    report = OptimizationReport()
    original = copy.deepcopy(model).eval()
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode have no version: none is kept packed
        expected = original(*copy.deepcopy(arguments))
        body = _optimized_part(copy.deepcopy(original), arguments, "", report)
        for parameter in body.parameters():
            parameter.requires_grad_(False)
        result = OptimizedModel(body, report)
        _choose_format(result, arguments, memory_format)
        report.error = _difference(result(*copy.deepcopy(arguments)), expected)
    if not report.error <= tolerance:
        raise RuntimeError(
            f"optimize: the optimised model's output differs from the original's by {report.error:.3g} of its norm on "
            f"the example (expected at most {tolerance:g})\n{report}"
        )
    return result


def _optimized_part(
    model: torch.nn.Module, arguments: tuple[Any, ...] | None, name: str, report: OptimizationReport
) -> torch.nn.Module:
    """The model rewritten, or with as many of its parts rewritten as can be. It may be changed."""
    try:
        graph_module = trace(model)
    except Exception as error:  # whatever a model's code does with a value that is not there yet
        reason = str(error).strip().splitlines()
        report.left.append((name, type(model).__name__, reason[0] if reason else type(error).__name__))
        inputs = _inputs_of_children(model, arguments)
        for child_name, child in list(model.named_children()):
            if next(child.children(), None) is not None:
                full = f"{name}.{child_name}" if name else child_name
                setattr(model, child_name, _optimized_part(child, inputs.get(child_name), full, report))
        convert(model)
        return model
    if arguments is None:
        report.left.append((name, type(model).__name__, "not called with tensors alone on the example"))
        convert(model)
        return model
    record_examples(graph_module, copy.deepcopy(arguments))
    for what, change in _PASSES:
        report.changes[what] = report.changes.get(what, 0) + change(graph_module)
        graph_module.graph.lint()
    flatten(graph_module)
    graph_module.recompile()
    return graph_module


def _inputs_of_children(model: torch.nn.Module, arguments: tuple[Any, ...] | None) -> dict[str, tuple[Any, ...]]:
    """What each child is called with first when the model runs on its arguments."""
    seen: dict[str, tuple[Any, ...]] = {}
    if arguments is None:
        return seen
    handles = []
    for name, child in model.named_children():

        def note(_module: Any, args: Any, kwargs: Any, name: str = name) -> None:
            if not kwargs:
                seen.setdefault(name, copy.deepcopy(tuple(args)))

        handles.append(child.register_forward_pre_hook(note, with_kwargs=True))
    try:
        model(*copy.deepcopy(arguments))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _choose_format(model: OptimizedModel, arguments: tuple[Any, ...], wish: str) -> None:
    images = [a for a in arguments if isinstance(a, Tensor) and a.dim() in (4, 5)]
    if wish == "auto" and not images:
        wish = "contiguous"
    if wish != "auto":
        _lay_out(model, wish)
        return
    last = "channels_last" if images[0].dim() == 4 else "channels_last_3d"
    other = copy.deepcopy(model)
    _lay_out(model, "contiguous")
    _lay_out(other, last)
    times = _milliseconds([model, other], arguments)
    model.report.milliseconds = {"contiguous": min(times[0]), last: min(times[1])}
    if statistics.median(b / a for a, b in zip(*times, strict=True)) < 1:  # neighbours: a machine has better times
        _lay_out(model, last)
        model(*copy.deepcopy(arguments))


def _lay_out(model: OptimizedModel, format: str) -> None:
    """Weights of as many dimensions as the format is for, in that format."""
    model.report.memory_format = format
    dims = {"contiguous": (4, 5), "channels_last": (4,), "channels_last_3d": (5,)}[format]
    for parameter in model.parameters():
        if parameter.dim() in dims:
            parameter.data = parameter.data.contiguous(memory_format=_FORMATS[format])


def _milliseconds(models: Sequence[torch.nn.Module], arguments: tuple[Any, ...]) -> list[list[float]]:
    """Each model's times of a few calls, in turns, after one that packs the weights."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(_TRIALS + 1):
        for model, own_times in zip(models, times, strict=True):
            own = copy.deepcopy(arguments)
            start = time.perf_counter()
            model(*own)
            own_times.append(1000 * (time.perf_counter() - start))
    return [own[1:] for own in times]


def _difference(actual: Any, expected: Any) -> float:
    """``|actual - expected| / |expected|`` over all tensors of the results; infinite where their shapes differ."""
    pairs: list[tuple[Tensor, Tensor]] = []

    def collect(a: Any, e: Any) -> bool:
        if isinstance(e, Tensor):
            if not isinstance(a, Tensor) or a.shape != e.shape:
                return False
            pairs.append((a.double(), e.double()))
            return True
        if isinstance(e, dict):
            return isinstance(a, dict) and a.keys() == e.keys() and all(collect(a[k], e[k]) for k in e)
        if isinstance(e, list | tuple):
            return len(a) == len(e) and all(collect(x, y) for x, y in zip(a, e, strict=True))
        return bool(a == e)

    if not collect(actual, expected):
        return float("inf")
    difference = math.sqrt(sum(float((a - e).square().sum()) for a, e in pairs))
    norm = math.sqrt(sum(float(e.square().sum()) for _, e in pairs))
    return difference / norm if norm > 0 else difference
