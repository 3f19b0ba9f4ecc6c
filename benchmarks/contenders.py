"""Who competes for a problem: convext's algorithms and torch's ways, each as a call, and what the result must be.

Forward passes go through the functions that users call (convext.functional, torch.nn.functional); gradients through
the operators behind autograd, one gradient at a time. In channels_last, input, weight and gradient are laid out as
``model.to(memory_format=torch.channels_last)`` leaves them. What a layer prepares once (a prepacked weight, the places
that max pooling saved) is prepared outside the timed call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import convext
from benchmarks.peers import PeerCall, Worker
from benchmarks.shapes import ConvProblem, Maker, PoolProblem, laid_out
from benchmarks.timing import Call, Reference

Problem = ConvProblem | PoolProblem

NAIVE_LIMIT = 4_000_000
"""naive is timed up to this many multiply-adds (comparisons, additions) a call."""
INTEGERS = 4
"""Small integers are drawn from -INTEGERS .. INTEGERS: any sum of 2^20 products of two stays exact in float32."""
EXACT_TERMS = 2**24 // INTEGERS**2
WINOGRAD_FACTOR = 400.0
"""Winograd's transforms amplify rounding: MNN's norm-wise error, with its large tiles, was measured near 1e-4 where
direct summation has 2.4e-7. Whoever uses Winograd is allowed this many times the bound of a plain sum."""
WINOGRAD_NORM = 2.5e-6
"""What the norm-wise error of convext's must stay under in float32, besides."""


SIXTEEN_BIT_SUMS = 2.0**13
"""torch sums float16 in 16 bits in some directions (seen: the gradient of the input); its unit roundoff is this many
times float32's, and torch alone is allowed that."""


class Operands(NamedTuple):
    """Input, weight (None for pooling) and gradient of the output, in one layout."""

    x: Tensor
    w: Tensor | None
    dy: Tensor


@dataclass(frozen=True)
class Contender:
    """One way to compute a case. ``prepare`` makes the call; ``refusal`` says why it takes no part."""

    library: str
    variant: str
    layout: str
    prepare: Callable[[Operands], Call]
    algorithm: str | None = None
    """What runs, for convext."""
    refusal: str | None = None
    exact: bool = False
    """Whether sums of small integers must come out exactly, after rounding to integers where ``rounded``."""
    rounded: bool = False
    error_factor: float = 1.0
    """Times the bound of a plain sum."""
    tiles: bool = False
    """Whether an element's error is bounded by its neighbours', too."""
    norm_limit: float = math.inf
    """Of the norm-wise error."""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.library, self.variant, self.layout) if part not in ("", "contiguous"))


def normal(seed: int) -> Maker:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def small_integers(seed: int) -> Maker:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randint(-INTEGERS, INTEGERS + 1, shape, generator=generator).float()


@dataclass(frozen=True)
class Case:
    """A problem in one direction: ``forward``, ``backward_input`` or (convolution only) ``backward_weight``."""

    problem: Problem
    direction: str

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("contiguous",) if self.problem.spatial == 1 else ("contiguous", "channels_last")

    @property
    def operations(self) -> int:
        """Multiply-adds of a convolution; comparisons or additions of a pooling."""
        if isinstance(self.problem, ConvProblem):
            return self.problem.multiply_adds
        return self.output_elements * _product(self.problem.kernel)

    @property
    def output_elements(self) -> int:
        return _product(self.problem.output_shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.problem.dtype if isinstance(self.problem, ConvProblem) else torch.float32

    @property
    def mirrored(self) -> str:
        """The direction of the problem's convolution that this is: for a transposed layer the other one."""
        if isinstance(self.problem, ConvProblem) and self.problem.transposed:
            return {"forward": "backward_input", "backward_input": "forward"}.get(self.direction, self.direction)
        return self.direction

    def operands(self, numbers: Maker, layout: str) -> Operands:
        """Operands of the case's dtype; the same numbers in every layout for a maker of the same seed."""
        last = layout == "channels_last"

        def make(*shape: int) -> Tensor:
            return numbers(*shape).to(self.dtype)

        if isinstance(self.problem, ConvProblem):
            x, w, _bias = self.problem.operands(make, last)
            return Operands(x, laid_out(w, last), laid_out(make(*self.problem.output_shape), last))
        x = self.problem.operand(make, last)
        return Operands(x, None, laid_out(make(*self.problem.output_shape), last))

    def value(self, operands: Operands) -> Tensor:
        """The result in float64, by torch."""
        wide = Operands(*(None if t is None else t.double().contiguous() for t in operands))
        p = self.problem
        return (torch_conv if isinstance(p, ConvProblem) else torch_pool)(p, self.direction)(wide)()  # type: ignore[arg-type]

    def reference(self, operands: Operands) -> Reference:
        """The result in float64 and what its error bound needs."""
        p, (x, w, dy) = self.problem, operands
        signed = isinstance(p, PoolProblem) and not p.average  # the places that win depend on the signs of x
        absolute = Operands(x if signed else x.abs(), None if w is None else w.abs(), dy.abs())
        value = self.value(operands)
        return Reference(value, self.value(absolute) if self.terms else value.abs(), self.terms, self.dtype)

    @property
    def terms(self) -> int:
        """How many rounded terms make one element of the result."""
        p = self.problem
        if isinstance(p, ConvProblem):
            taps = _product(p.kernel)
            inputs, outputs = (c // p.groups for c in p.channels)
            by_direction = {
                "forward": inputs * taps,
                "backward_input": outputs * taps,
                "backward_weight": p.batch * _product(p.output_shape[2:]),
            }
            return by_direction[self.mirrored]
        if p.average:
            return _product(p.kernel) + 2  # and a division, or a product with a rounded reciprocal
        return 0 if self.direction == "forward" else _product(p.kernel)

    @property
    def integers_stay_exact(self) -> bool:
        """Whether every sum of small integers is exact, in any order."""
        if self.dtype not in (torch.float32, torch.float64):
            return False
        average = isinstance(self.problem, PoolProblem) and self.problem.average
        return not average and self.terms <= EXACT_TERMS


def _product(sizes: Any) -> int:
    result = 1
    for n in sizes:
        result *= n
    return result


def directions(problem: Problem) -> tuple[str, ...]:
    return convext.choice.DIRECTIONS if isinstance(problem, ConvProblem) else convext.choice.DIRECTIONS[:2]


# torch -------------------------------------------------------------------------------------------------------------


def torch_conv(p: ConvProblem, direction: str) -> Callable[[Operands], Call]:
    """torch has no per-side padding: where the sides differ the call pads a copy, as a user must."""
    stride, pads, dilation, groups = p.options[:4]
    before, after = pads[::2], pads[1::2]
    symmetric = before == after
    padding = before if symmetric else [0] * p.spatial
    extra = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    conv: Any = (F.conv1d, F.conv2d, F.conv3d)[p.spatial - 1]
    wanted = [direction == "backward_input", direction == "backward_weight", False]

    def pad(x: Tensor) -> Tensor:
        return x if symmetric else F.pad(x, extra)

    def unpad(dx: Tensor) -> Tensor:
        if not symmetric:
            for axis, (start, size) in enumerate(zip(before, p.size, strict=True), start=2):
                dx = dx.narrow(axis, start, size)
        return dx

    def prepare(o: Operands) -> Call:
        x, w, dy = o.x, o.w, o.dy
        if p.transposed:
            return _torch_transposed(p, direction, o)
        if direction == "forward":
            return lambda: conv(pad(x), w, None, stride, padding, dilation, groups)
        rest = (None, stride, padding, dilation, False, [0] * p.spatial, groups, wanted)
        if direction == "backward_input":
            return lambda: unpad(torch.ops.aten.convolution_backward(dy, pad(x), w, *rest)[0])
        return lambda: torch.ops.aten.convolution_backward(dy, pad(x), w, *rest)[1]

    return prepare


def _torch_transposed(p: ConvProblem, direction: str, o: Operands) -> Call:
    """The layer's input is the mirror's gradient of the output, and the other way round."""
    stride, pads, dilation, groups = p.options[:4]
    padding, none = pads[::2], [0] * p.spatial
    x, w, dy = o.x, o.w, o.dy
    conv: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[p.spatial - 1]
    if direction == "forward":
        return lambda: conv(dy, w, None, stride, padding, 0, groups, dilation)
    at = 0 if direction == "backward_input" else 1
    rest = (None, stride, padding, dilation, True, none, groups, [at == 0, at == 1, False])
    return lambda: torch.ops.aten.convolution_backward(x, dy, w, *rest)[at]


def torch_prepacked(p: ConvProblem) -> Callable[[Operands], Call]:
    """oneDNN's kernel as torch's inductor calls it: the weight reordered beforehand, the input channels_last."""
    stride, pads, dilation, groups = p.options[:4]
    padding = pads[::2]

    def prepare(o: Operands) -> Call:
        packed = torch.ops.mkldnn._reorder_convolution_weight(o.w, padding, stride, dilation, groups, list(o.x.shape))
        rest = (packed, None, padding, stride, dilation, groups, "none", [], "")
        return lambda: torch.ops.mkldnn._convolution_pointwise(o.x, *rest)

    return prepare


def _why_not_prepacked(p: ConvProblem) -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    if p.spatial == 1:
        return "no operator for one dimension"
    if p.transposed or p.dtype != torch.float32:
        return "float32 convolutions only"
    if p.options[1][::2] != p.options[1][1::2]:
        return "no per-side padding"
    return None


def torch_pool(p: PoolProblem, direction: str) -> Callable[[Operands], Call]:
    kernel, stride, pads, dilation, ceil_mode = p.window
    padding, n = pads[::2], f"{p.spatial}d"
    average = (ceil_mode, p.count_include_pad, p.divisor_override)

    def prepare(o: Operands) -> Call:
        x, dy = o.x, o.dy
        if p.average:
            if direction == "forward":
                return lambda: getattr(F, f"avg_pool{n}")(x, kernel, stride, padding, *average)
            backward = getattr(torch.ops.aten, f"avg_pool{n}_backward").default
            return lambda: backward(dy, x, kernel, stride, padding, *average)
        if direction == "forward":
            return lambda: getattr(F, f"max_pool{n}")(x, kernel, stride, padding, dilation, ceil_mode)
        window = (kernel, stride, padding, dilation, ceil_mode)
        _, indices = getattr(torch.ops.aten, f"max_pool{n}_with_indices").default(x, *window)
        backward = getattr(torch.ops.aten, f"max_pool{n}_with_indices_backward").default
        return lambda: backward(dy, x, *window, indices)

    return prepare


# convext -----------------------------------------------------------------------------------------------------------


def convext_conv(p: ConvProblem, direction: str, algorithm: str) -> Callable[[Operands], Call]:
    conv = getattr(convext.functional, f"conv{p.spatial}d")
    layer = (p.stride, p.padding, p.dilation, p.groups)
    more = {"padding_mode": p.padding_mode, "flip_kernel": p.flip_kernel, "algorithm": algorithm}
    options = (*p.options, algorithm)

    def prepare(o: Operands) -> Call:
        x, w, dy = o.x, o.w, o.dy
        if p.transposed:
            transposed = getattr(convext.functional, f"conv_transpose{p.spatial}d")
            rest = (p.stride, p.padding, 0, p.groups, p.dilation)
            if direction == "forward":
                return lambda: transposed(dy, w, None, *rest, flip_kernel=p.flip_kernel, algorithm=algorithm)
            if direction == "backward_input":
                return lambda: convext.ops.conv_forward(x, w, None, *options)
        elif direction == "forward":
            return lambda: conv(x, w, None, *layer, **more)
        if direction == "backward_input":
            return lambda: convext.ops.conv_backward_input(dy, w, p.input_shape, *options)
        return lambda: convext.ops.conv_backward_weight(dy, x, p.weight_shape, *options)

    return prepare


def convext_pool(p: PoolProblem, direction: str, algorithm: str) -> Callable[[Operands], Call]:
    kind = "avg" if p.average else "max"
    pool = getattr(convext.functional, f"{kind}_pool{p.spatial}d")
    more: dict[str, Any] = {"ceil_mode": p.ceil_mode, "dilation": p.dilation, "algorithm": algorithm}
    if p.average:
        more |= {"count_include_pad": p.count_include_pad, "divisor_override": p.divisor_override}
        if p.spatial == 1:
            more.pop("divisor_override")

    def prepare(o: Operands) -> Call:
        x, dy = o.x, o.dy
        if direction == "forward":
            return lambda: pool(x, p.kernel, p.stride, p.padding, **more)
        shape, window = p.input_shape, p.window
        if p.average:
            rest = (*window, p.count_include_pad, p.divisor_override, algorithm)
            return lambda: convext.ops.avg_pool_backward(dy, shape, *rest)
        _, places = convext.ops.max_pool(x, *window, True, algorithm)
        return lambda: convext.ops.max_pool_backward(dy, places, shape, *window, algorithm)

    return prepare


def _explain(case: Case, layout: str) -> convext.Explanation:
    p = case.problem
    x = torch.empty(p.input_shape, device="meta", dtype=case.dtype)
    x = laid_out(x, layout == "channels_last")
    if isinstance(p, ConvProblem):
        w = laid_out(torch.empty(p.weight_shape, device="meta", dtype=case.dtype), layout == "channels_last")
        layer = (p.stride, p.padding, p.dilation, p.groups)
        more = {"padding_mode": p.padding_mode, "flip_kernel": p.flip_kernel}
        return convext.explain(f"conv{p.spatial}d", x, w, None, *layer, direction=case.mirrored, **more)
    op = f"{'avg' if p.average else 'max'}_pool{p.spatial}d"
    more = {"dilation": p.dilation, "ceil_mode": p.ceil_mode}
    return convext.explain(op, x, p.kernel, p.stride, p.padding, direction=case.direction, **more)


def _convext(case: Case, layout: str) -> list[Contender]:
    explanation = _explain(case, layout)
    refusals = {verdict.name: verdict.refusal for verdict in explanation.verdicts}
    p = case.problem
    make: Any = convext_conv if isinstance(p, ConvProblem) else convext_pool
    result = []
    for variant in ("auto", *refusals):
        algorithm = explanation.chosen if variant == "auto" else variant
        refusal = refusals[algorithm]
        if refusal is None and algorithm == "naive" and case.operations > NAIVE_LIMIT:
            refusal = f"naive is timed up to {NAIVE_LIMIT:,} multiply-adds, here are {case.operations:,}"
        accuracy: dict[str, Any] = {"exact": case.integers_stay_exact}
        if algorithm.split(":")[0] == "winograd":
            accuracy |= {"rounded": True, "error_factor": WINOGRAD_FACTOR, "tiles": True}
            accuracy |= {"norm_limit": WINOGRAD_NORM} if case.dtype == torch.float32 else {}
        prepare = make(p, case.direction, variant)
        result.append(Contender("convext", variant, layout, prepare, algorithm, refusal, **accuracy))
    return result


def contenders(case: Case) -> list[Contender]:
    """Everyone in this process, the ones that cannot take part with their refusal."""
    p, result = case.problem, []
    for layout in case.layouts:
        prepare = torch_conv(p, case.direction) if isinstance(p, ConvProblem) else torch_pool(p, case.direction)
        factor = SIXTEEN_BIT_SUMS if case.dtype in (torch.float16, torch.bfloat16) else 1.0
        result.append(Contender("torch", "", layout, prepare, error_factor=factor))
        result += _convext(case, layout)
    if isinstance(p, ConvProblem) and case.direction == "forward":
        prepacked = torch_prepacked(p)
        result.append(Contender("torch", "prepacked", "channels_last", prepacked, refusal=_why_not_prepacked(p)))
    return result


def peers(case: Case, workers: Sequence[Worker], threads: int) -> list[Contender]:
    """Runtimes in processes of their own: forward, contiguous."""
    p = case.problem
    if case.direction != "forward" or case.dtype != torch.float32:
        return []
    output = p.output_shape
    if isinstance(p, ConvProblem):
        stride, pads, dilation, groups = p.options[:4]
        spec = {"kind": "transposed" if p.transposed else "conv", "kernel": list(p.kernel), "groups": groups}
        output = p.input_shape if p.transposed else p.output_shape
    else:
        kernel, stride, pads, dilation, ceil_mode = p.window
        spec = {"kind": "avg" if p.average else "max", "kernel": kernel, "ceil_mode": ceil_mode}
        spec["count_include_pad"] = p.count_include_pad
    spec |= {
        "output": list(output),
        "stride": stride,
        "before": pads[::2],
        "after": pads[1::2],
        "dilation": dilation,
    }

    def prepare(worker: Worker, o: Operands) -> Call:
        x = o.dy if spec["kind"] == "transposed" else o.x
        return PeerCall(worker, spec, x.numpy(), None if o.w is None else o.w.numpy(), threads)

    factors = {"ncnn": WINOGRAD_FACTOR, "mnn": WINOGRAD_FACTOR}
    return [
        Contender(
            worker.name,
            "",
            "contiguous",
            functools.partial(prepare, worker),
            error_factor=factors.get(worker.name, 1.0),
        )
        for worker in workers
    ]
