"""What ``algorithm="auto"`` may be told: a cap on workspaces, and choices measured on the machine at hand.

report = convext.tune(model, image)     # measures every algorithm on the very calls the model makes
print(report)                           # what was chosen, the times, the gain
convext.save_tuning("tuning.json")      # a readable file; convext.load_tuning reads it in another process

Without it "auto" follows rules that look at shapes alone. A measured choice holds for calls of exactly those shapes,
whatever their batch, in this process, and is as fixed as a rule: results do not vary from run to run after it.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convext import _C, ops
from convext.ops import is_channels_last

_FORMAT = 1
_MARGIN = 0.97
"""A choice must beat the rule's by this much: less is noise."""
_HOPELESS = 4.0
"""An algorithm whose first run takes so many times the fastest one's is not measured further."""
_TOO_LONG = 2**30
"""Multiply-adds from which on ``naive``, which does a hundred million a second, is not even tried."""


# Workspaces ----------------------------------------------------------------------------------------------------------


def workspace_limit() -> int | None:
    """How many bytes of workspace a call may take; None where there is no limit."""
    return _C.workspace_limit()


def set_workspace_limit(limit: int | None) -> None:
    """Caps the workspace that one call may take, in bytes; None lifts the cap. Holds for the whole process.

    ``"auto"`` passes over algorithms that would need more; a call that names one raises NotImplementedError, stating
    the bytes needed and allowed. ``convext.explain`` gives the reason. What an algorithm needs is
    ``explain(...).verdicts[i].workspace_bytes``: on the CPU for the present number of threads. Weights in packed form
    between calls are not workspace.

    Raises TypeError for anything but an int or None, ValueError for a negative limit.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise TypeError(f"limit must be a number of bytes or None, got {limit!r} ({type(limit).__name__})")
    if limit is not None and not 0 <= limit < 2**63:
        raise ValueError(f"limit must be at least 0 and below 2^63, got {limit}")
    _C.set_workspace_limit(limit)


# The calls that a choice can be made for -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """What "auto" looks at. ``input`` is one image: (c, *places)."""

    direction: str
    input: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    dtype: str
    device: str
    channels_last: bool

    def _tensor(self, *shape: int) -> Tensor:
        values = torch.randn(shape, device=self.device).to(getattr(torch, self.dtype))
        return values.contiguous(memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        if not self.channels_last:
            return torch.contiguous_format
        return torch.channels_last_3d if len(self.input) == 4 else torch.channels_last

    def choose(self, algorithm: str | None) -> None:
        """Makes "auto" run the algorithm for calls like this one; None leaves it to the rules again."""
        raise NotImplementedError

    def explain(self) -> tuple[str, str, list[str]]:
        """The call in words, what "auto" runs, and what it may choose among."""
        raise NotImplementedError

    def runner(self, batch: int) -> Callable[[str], Any]:
        """Computes the call, on new tensors, by the algorithm named."""
        raise NotImplementedError

    def multiply_adds(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class ConvCall(_Call):
    """One direction of a convolution."""

    weight: tuple[int, ...]
    groups: int
    padding_mode: str
    flip_kernel: bool
    winograd: str
    """The mode the call was made in: :func:`convext.set_winograd`."""

    def _options(self) -> tuple[Any, ...]:
        window = (list(self.stride), list(self.padding), list(self.dilation))
        return *window, self.groups, self.padding_mode, self.flip_kernel

    def _arguments(self) -> tuple[Any, ...]:
        shapes = ([1, *self.input], list(self.weight))
        return *shapes, *self._options(), self.channels_last, self.device, self.dtype, self.direction

    def choose(self, algorithm: str | None) -> None:
        arguments = (*self._arguments(), self.winograd, algorithm)
        _C.set_tuned_conv(*arguments)

    def explain(self) -> tuple[str, str, list[str]]:
        arguments = (*self._arguments(), f"auto:{self.winograd}")
        text, chosen, verdicts, _tuned = _C.explain_conv(*arguments)
        usable = [name for name, refusal, _workspace in verdicts if refusal is None]
        if self.winograd == "off":
            usable = [name for name in usable if name != "winograd"]
        return f"{text} {self.dtype}, {self.direction}", str(chosen), usable

    def _output_shape(self, batch: int) -> list[int]:
        window = (self.stride, self.padding, self.dilation)
        return ops.conv_output_shape((batch, *self.input), self.weight, *window, self.groups, self.padding_mode)

    def runner(self, batch: int) -> Callable[[str], Any]:
        x, options = self._tensor(batch, *self.input), self._options()
        w = torch.randn(self.weight, device=self.device).to(x.dtype)
        dy = self._tensor(*self._output_shape(batch))

        def run(algorithm: str) -> Tensor:
            rest = (*options, f"{algorithm}:{self.winograd}")
            if self.direction == "forward":
                return ops.conv_forward(x, w, None, *rest)
            if self.direction == "backward_input":
                return ops.conv_backward_input(dy, w, list(x.shape), *rest)
            return ops.conv_backward_weight(dy, x, list(w.shape), *rest)

        return run

    def multiply_adds(self) -> int:
        count = 1
        for size in (*self._output_shape(1), *self.weight[1:]):
            count *= size
        return count


@dataclass(frozen=True)
class PoolCall(_Call):
    """One direction of a pooling: ``operator`` is "max_pool" or "avg_pool"."""

    operator: str
    kernel_size: tuple[int, ...]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None

    def _window(self) -> tuple[Any, ...]:
        sizes = (list(self.kernel_size), list(self.stride), list(self.padding), list(self.dilation))
        return *sizes, self.ceil_mode

    def _arguments(self) -> tuple[Any, ...]:
        average = (self.count_include_pad, self.divisor_override)
        kind = (self.channels_last, self.device, self.dtype, self.direction)
        return self.operator, [1, *self.input], *self._window(), *average, *kind

    def choose(self, algorithm: str | None) -> None:
        arguments = (*self._arguments(), algorithm)
        _C.set_tuned_pool(*arguments)

    def explain(self) -> tuple[str, str, list[str]]:
        arguments = (*self._arguments(), "auto")
        text, chosen, verdicts, _tuned = _C.explain_pool(*arguments)
        words = f"{self.operator} {text} {self.dtype}, {self.direction}"
        return words, str(chosen), [name for name, refusal, _workspace in verdicts if refusal is None]

    def runner(self, batch: int) -> Callable[[str], Any]:
        x, window = self._tensor(batch, *self.input), self._window()
        average = (self.count_include_pad, self.divisor_override)
        shape = list(x.shape)
        if self.direction == "forward":
            if self.operator == "max_pool":
                return lambda algorithm: ops.max_pool(x, *window, False, algorithm)
            return lambda algorithm: ops.avg_pool(x, *window, *average, algorithm)
        if self.operator == "max_pool":
            output, places = ops.max_pool(x, *window, True, "auto")
            return lambda algorithm: ops.max_pool_backward(output, places, shape, *window, algorithm)
        dy = ops.avg_pool(x, *window, *average, "auto")
        return lambda algorithm: ops.avg_pool_backward(dy, shape, *window, *average, algorithm)

    def multiply_adds(self) -> int:
        count = 1
        for size in (*self.input, *self.kernel_size):
            count *= size
        return count


_CONVOLUTIONS = {
    torch.ops.convext.conv_forward.default: "forward",
    torch.ops.convext.conv_backward_input.default: "backward_input",
    torch.ops.convext.conv_backward_weight.default: "backward_weight",
}
_POOLS = {
    torch.ops.convext.max_pool.default: "max_pool",
    torch.ops.convext.avg_pool.default: "avg_pool",
}


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _conv_call(direction: str, args: tuple[Any, ...]) -> tuple[ConvCall, int] | None:
    """The call, and its batch; None where nothing is computed or an algorithm was named."""
    a, b, third, stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm = args
    input = third if direction == "backward_input" else (a if direction == "forward" else b).shape
    weight = third if direction == "backward_weight" else b.shape
    name, winograd = _C.parse_algorithm(algorithm)
    if name != "auto" or 0 in input or 0 in weight:
        return None
    call = ConvCall(
        direction=direction,
        input=tuple(input[1:]),
        weight=tuple(weight),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        padding_mode=padding_mode,
        flip_kernel=flip_kernel,
        winograd=winograd,
        dtype=_name_of(a.dtype),
        device=a.device.type,
        channels_last=is_channels_last(a) or is_channels_last(b),
    )
    return call, input[0]


def _pool_call(operator: str, args: tuple[Any, ...]) -> tuple[PoolCall, int] | None:
    x, kernel, stride, padding, dilation, ceil_mode, *average, algorithm = args
    if algorithm != "auto" or 0 in x.shape:
        return None
    count_include_pad, divisor_override = (True, None) if operator == "max_pool" else average
    call = PoolCall(
        operator=operator,
        direction="forward",
        input=tuple(x.shape[1:]),
        kernel_size=tuple(kernel),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
        dtype=_name_of(x.dtype),
        device=x.device.type,
        channels_last=is_channels_last(x),
    )
    return call, x.shape[0]


class _Collector(TorchDispatchMode):
    """Notes every call of an operator of convext that is left to "auto": how often, and its largest batch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[ConvCall | PoolCall, tuple[int, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found: tuple[ConvCall | PoolCall, int] | None = None
        if func in _CONVOLUTIONS:
            found = _conv_call(_CONVOLUTIONS[func], args)
        elif func in _POOLS:
            found = _pool_call(_POOLS[func], args)
        if found is not None:
            call, batch = found
            times, largest = self.calls.get(call, (0, 0))
            self.calls[call] = times + 1, max(largest, batch)
        return func(*args, **(kwargs or {}))


def _with_gradients(calls: dict[ConvCall | PoolCall, tuple[int, int]]) -> dict[ConvCall | PoolCall, tuple[int, int]]:
    """The calls, and the other directions of each: what training makes of them."""
    result = dict(calls)
    for call, seen in calls.items():
        others = _CONVOLUTIONS.values() if isinstance(call, ConvCall) else ("forward", "backward_input")
        if isinstance(call, PoolCall) and not getattr(torch, call.dtype).is_floating_point:
            continue
        values = {f.name: getattr(call, f.name) for f in fields(call)}
        for direction in others:
            result.setdefault(type(call)(**{**values, "direction": direction}), seen)
    return result


# Measuring -----------------------------------------------------------------------------------------------------------


def _seconds(run: Callable[[str], Any], algorithm: str, repeats: int, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run(algorithm)
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _measure(call: ConvCall | PoolCall, batch: int, names: list[str], rounds: int) -> dict[str, float]:
    """Median seconds per algorithm; they take turns. Best first, the hopeless left out."""
    run = call.runner(batch)
    first: dict[str, float] = {}
    for name in names:
        if name == "naive" and first and batch * call.multiply_adds() > _TOO_LONG:
            continue
        run(name)  # packs weights, touches memory
        first[name] = _seconds(run, name, 1, call.device)
    least = min(first.values())
    hopeful = [name for name in first if first[name] <= _HOPELESS * least]
    if len(hopeful) == 1:
        return first
    repeats = max(1, round(2e-4 / least))
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in hopeful}
    for _ in range(rounds):
        for name in order.sample(hopeful, len(hopeful)):
            times[name].append(_seconds(run, name, repeats, call.device))
    return first | {name: statistics.median(values) for name, values in times.items()}


@dataclass(frozen=True)
class Tuned:
    """The measured choice for one call."""

    call: ConvCall | PoolCall
    text: str
    """The call in words."""
    times: int
    """How often the model makes it."""
    rule: str
    """What "auto" ran by its rules."""
    chosen: str
    milliseconds: dict[str, float]
    """Per algorithm. One that took many times the fastest's was run once only."""

    @property
    def gain(self) -> float:
        """How many times as fast as the rule's choice."""
        return self.milliseconds[self.rule] / self.milliseconds[self.chosen]


@dataclass(frozen=True)
class TuningReport:
    """What :func:`tune` measured and chose; ``str()`` is a table."""

    choices: tuple[Tuned, ...]

    @property
    def gain(self) -> float:
        """How many times as fast all the model's calls together are as they were by the rules; 1.0 for no calls."""
        before = sum(c.times * c.milliseconds[c.rule] for c in self.choices)
        after = sum(c.times * c.milliseconds[c.chosen] for c in self.choices)
        return before / after if self.choices else 1.0

    def __str__(self) -> str:
        if not self.choices:
            return 'tune: the model makes no call of convext that is left to "auto"'
        lines = []
        for c in self.choices:
            changed = f"{c.chosen} for {c.rule}, {c.gain:.2f} times as fast" if c.chosen != c.rule else c.chosen
            ranked = sorted(c.milliseconds.items(), key=lambda item: item[1])
            lines.append(f"{c.text}{f', {c.times} times' if c.times > 1 else ''}: {changed}")
            lines.append("    " + ", ".join(f"{name} {ms:.4g} ms" for name, ms in ranked))
        count = sum(c.chosen != c.rule for c in self.choices)
        lines.append(f"{len(self.choices)} calls, {count} changed, together {self.gain:.2f} times as fast")
        return "\n".join(lines)


_choices: dict[ConvCall | PoolCall, Tuned] = {}


def tune(
    model: Callable[..., Any], *inputs: Any, backward: bool = False, rounds: int = 9, **keywords: Any
) -> TuningReport:
    """Measures every algorithm on every convolution and pooling that ``model(*inputs, **keywords)`` makes with
    ``algorithm="auto"``, and makes "auto" run the fastest for calls of those shapes from now on, in this process.

    ``model`` is a module or any callable; it is called once, without gradients, as it stands (put a module with running
    statistics in ``eval()``). Calls through :mod:`convext.functional` count as well as layers. Shapes are those of the
    example: one image's channels and places, kernel, stride, padding, dilation, groups, modes, layout, dtype, device;
    not the batch. ``backward=True`` tunes both gradients of each call too. Each algorithm that can do the call, within
    the workspace limit, runs ``rounds`` times, in turns; the least median is chosen, or what the rule says where none
    is faster than that by three percent.

    A later ``tune`` replaces earlier choices for the same calls. See :func:`save_tuning`, :func:`clear_tuning`.
    Raises ValueError for fewer than one round, RuntimeError while a CUDA graph is being captured, where nothing can be
    measured (tune first, capture then), and whatever the model raises.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("tune: a CUDA graph is being captured on this stream; tune before capturing it")
    with torch.no_grad(), _Collector() as collector:
        model(*inputs, **keywords)
    calls = _with_gradients(collector.calls) if backward else collector.calls
    tuned = []
    with torch.no_grad():
        for call, (times, batch) in calls.items():
            call.choose(None)
            text, rule, algorithms = call.explain()
            seconds = _measure(call, batch, algorithms, rounds)
            best = min(seconds, key=lambda name: seconds[name])
            chosen = best if seconds[best] < _MARGIN * seconds.get(rule, float("inf")) else rule
            milliseconds = {name: 1e3 * value for name, value in seconds.items()}
            choice = Tuned(call, text, times, rule, chosen, milliseconds)
            call.choose(chosen)
            _choices[call] = choice
            tuned.append(choice)
    return TuningReport(tuple(tuned))


def clear_tuning() -> None:
    """Forgets every measured choice: "auto" follows its rules again."""
    _choices.clear()
    _C.clear_tuned()


# Files ---------------------------------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    """What a measured choice holds for."""
    from convext import __version__

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "convext": __version__,
        "cpu": model,
        "instruction set": _C.active_isa(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The sets of choices in a file, one per machine. ValueError for what is no such file."""
    try:
        content = json.loads(Path(path).read_text())
        sets = content["sets"]
        if content["convext tuning"] != _FORMAT or not all(isinstance(s["machine"], dict) for s in sets):
            raise KeyError
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{os.fspath(path)} is not a file of convext.save_tuning, format {_FORMAT}") from None
    return list(sets)


def save_tuning(path: str | os.PathLike[str]) -> None:
    """Writes the measured choices, with their times, as JSON, under this machine: CPU, instruction set, threads, GPU
    and version of convext. Choices that the file has for other machines stay; this machine's are replaced.

    Raises ValueError where the file exists and is something else.
    """
    machine = _machine()
    sets = [s for s in _read(path) if s["machine"] != machine] if Path(path).exists() else []
    entries = []
    for choice in _choices.values():
        kind = "conv" if isinstance(choice.call, ConvCall) else "pool"
        times = {name: round(value, 6) for name, value in choice.milliseconds.items()}
        chosen = {"rule": choice.rule, "chosen": choice.chosen, "times": choice.times, "milliseconds": times}
        entries.append({"kind": kind, "call": asdict(choice.call), **chosen})
    sets.append({"machine": machine, "choices": entries})
    Path(path).write_text(json.dumps({"convext tuning": _FORMAT, "sets": sets}, indent=1) + "\n")


def load_tuning(path: str | os.PathLike[str]) -> TuningReport:
    """Makes "auto" follow the choices that :func:`save_tuning` wrote on a machine like this one, beside those measured
    already, and returns them.

    Raises ValueError where the file has no choices for this CPU, instruction set, number of threads, GPU and version of
    convext, saying what it has, and where it is no such file; nothing is changed then.
    """
    machine, sets = _machine(), _read(path)
    matching = [s for s in sets if s["machine"] == machine]
    if not matching:
        known = "".join(f"\n  {s['machine']}" for s in sets) or " none"
        raise ValueError(f"{os.fspath(path)} has no choices for this machine\n  {machine}\nbut for{known}")
    loaded = []
    try:
        for entry in matching[0]["choices"]:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["call"].items()}
            call = (ConvCall if entry["kind"] == "conv" else PoolCall)(**values)
            text, _chosen, algorithms = call.explain()
            if entry["chosen"] not in algorithms:
                raise KeyError(entry["chosen"])
            times = dict(entry["milliseconds"])
            loaded.append(Tuned(call, text, entry["times"], entry["rule"], entry["chosen"], times))
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged: {error}") from None
    for choice in loaded:
        choice.call.choose(choice.chosen)
        _choices[choice.call] = choice
    return TuningReport(tuple(loaded))
