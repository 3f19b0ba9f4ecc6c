"""Swapping the layers of a model for convext's, in place, and back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.modules.conv import _ConvNd

from convext import _C
from convext import nn as layers
from convext.choice import algorithms
from convext.nn.sequential import FusedSequential, fused_sequential, torch_sequential
from convext.padding import is_per_side, needs_extension

_SWAPPED = [name for name in layers.__all__ if hasattr(torch.nn, name) and not name.startswith("Lazy")]
_TO_CONVEXT = {getattr(torch.nn, name): getattr(layers, name) for name in _SWAPPED}
_TO_TORCH = {ours: theirs for theirs, ours in _TO_CONVEXT.items()}
_RELATED = ("Conv", "Pool", "BatchNorm")


@dataclass
class ConversionReport:
    """What :func:`convert` or :func:`revert` did: layers by their qualified name."""

    swapped: list[tuple[str, str]] = field(default_factory=list)
    """(name, type) of each swapped layer."""
    left: list[tuple[str, str, str]] = field(default_factory=list)
    """(name, type, reason) of each convolution, pooling or batch normalisation left as it was."""

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} layers, left {len(self.left)}"]
        lines += [f"  {name}: {kind}" for name, kind in self.swapped]
        lines += [f"  {name}: {kind} left: {reason}" for name, kind, reason in self.left]
        return "\n".join(lines)


def _reason_to_leave(module: torch.nn.Module) -> str | None:
    """Why a torch.nn convolution, pooling or batch normalisation is not swapped; None for any other layer."""
    kind = type(module)
    if kind in _TO_TORCH or not any(word in kind.__name__ for word in _RELATED):
        return None
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
        return "not initialised yet: run it once, then convert"
    bases = [base.__name__ for base in kind.__mro__[1:] if base in _TO_CONVEXT]
    if bases:
        return f"a subclass of {bases[0]}: its own forward might be lost"
    if kind.__module__.startswith("torch.nn"):
        return "convext has no such layer"
    return None


def convert(model: torch.nn.Module, algorithm: str = "auto") -> ConversionReport:
    """Turns every torch.nn convolution, pooling and batch normalisation of ``model`` (itself included) into convext's
    layer, in place, and every Sequential in which an activation follows a convolution or a normalisation into a
    FusedSequential.

    Parameters, buffers, hooks and the module objects themselves stay: only their class changes, so optimisers and
    references go on working. Subclasses of torch's layers and layers convext lacks are left, with the reason in the
    report. ``algorithm`` is given to every swapped layer that has it; raises ValueError for a name no layer knows.
    """
    known = {"auto", *algorithms("conv2d"), *algorithms("max_pool2d"), *algorithms("conv2d", "cuda")}
    plain, _mode = _C.parse_algorithm(algorithm)
    if plain not in known:
        raise ValueError(f"convert: algorithm must be one of {sorted(known)}, got {algorithm!r}")
    report = ConversionReport()
    for name, module in model.named_modules():
        ours = _TO_CONVEXT.get(type(module))
        if isinstance(module, torch.nn.Sequential) and FusedSequential.serves(module):
            module.__class__ = fused_sequential(type(module))
            report.swapped.append((name, type(module).__name__))
            continue
        if ours is None:
            reason = _reason_to_leave(module)
            if reason is not None:
                report.left.append((name, type(module).__name__, reason))
            continue
        module.__class__ = ours
        for extra, default in ours.extras.items():
            setattr(module, extra, default)
        if "algorithm" in ours.extras:
            pooling = not isinstance(module, _ConvNd)
            available = algorithms("max_pool2d" if pooling else "conv2d")
            chosen = plain if pooling else algorithm
            module.algorithm = chosen if plain in ("auto", *available) else "auto"
        report.swapped.append((name, ours.__name__))
    return report


def _beyond_torch(module: torch.nn.Module) -> str | None:
    """What a convext layer does that its torch.nn namesake cannot."""
    padding = getattr(module, "padding", 0)
    if getattr(module, "flip_kernel", False):
        return "flip_kernel=True"
    if getattr(module, "padding_mode", "zeros") == "symmetric":
        return "padding_mode='symmetric'"
    pooling_string = not isinstance(module, _ConvNd) and isinstance(padding, str)
    transposed_string = isinstance(module, torch.nn.modules.conv._ConvTransposeNd) and isinstance(padding, str)
    stride = getattr(module, "stride", 1)
    if pooling_string or transposed_string or is_per_side(padding) or needs_extension(padding, stride):
        return f"padding={padding!r}"
    extras = _TO_CONVEXT[_TO_TORCH[type(module)]].extras
    for name in ("padding", "dilation"):  # which torch's namesake has not
        value, default = getattr(module, name, None), extras.get(name)
        if name in extras and any(v != default for v in ((value,) if isinstance(value, int) else value)):  # type: ignore[union-attr]
            return f"{name}={value!r}"
    return None


def revert(model: torch.nn.Module) -> ConversionReport:
    """Undoes :func:`convert`: every convext layer of ``model`` becomes its torch.nn namesake again, in place.

    A layer that does what torch.nn cannot (a flipped kernel, per-side padding, ...) is left, with the reason.
    """
    report = ConversionReport()
    for name, module in model.named_modules():
        if isinstance(module, FusedSequential):
            plain = torch_sequential(type(module))
            module.__class__ = plain  # type: ignore[assignment]
            report.swapped.append((name, plain.__name__))
            continue
        theirs = _TO_TORCH.get(type(module))
        if theirs is None:
            continue
        reason = _beyond_torch(module)
        if reason is not None:
            report.left.append((name, type(module).__name__, f"torch.nn has no {reason}"))
            continue
        module.__class__ = theirs
        for extra in _TO_CONVEXT[theirs].extras:
            delattr(module, extra)
        report.swapped.append((name, theirs.__name__))
    return report
