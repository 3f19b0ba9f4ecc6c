"""Images too large for one device: each rank holds some rows, and sends its neighbours those that they see too.

    spatial_shard(model)                  # convolution and pooling layers exchange halos from now on
    rows = scatter_spatial(image)         # this rank's rows
    whole = gather_spatial(model(rows))   # everybody's

A layer's outputs are shared out by the centres of their windows; the rows that a rank's windows see and others hold
come by one message from each of them (most often one neighbour above, one below). The layer then runs on these rows
alone, padded only where the image ends. In the backward pass the halo's gradients go home and are added in the order of
ranks; gradients of weight and bias are summed over the ranks. Any cut will do, the heights are told at each layer (one
all_gather of a number). Every rank must come to every layer, forward and backward, as in any collective.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from convext import autograd, functional, ops
from convext import nn as layers
from convext.arguments import batched, expand
from convext.convert import convert
from convext.functional.convolution import as_transposed
from convext.padding import resolve
from convext.reference import padded_source

Range = tuple[int, int]

# Rows on their way ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """Who holds which rows, and who needs which."""

    group: Any
    dim: int
    held: tuple[Range, ...]
    needed: tuple[Range, ...]

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)


def _overlap(a: Range, b: Range) -> Range:
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return low, max(low, high)


def _trade(exchange: Exchange, outgoing: dict[int, Tensor], incoming: dict[int, Tensor]) -> None:
    """Sends and receives what is not empty; returns when all has come."""
    messages = []
    for operation, tensors in ((dist.isend, outgoing), (dist.irecv, incoming)):
        for rank, tensor in tensors.items():
            if rank != exchange.rank and tensor.numel() > 0:
                peer = rank if exchange.group is None else dist.get_global_rank(exchange.group, rank)
                messages.append(dist.P2POp(operation, tensor, peer, exchange.group))
    for work in dist.batch_isend_irecv(messages) if messages else ():
        work.wait()


def _part(rows: Tensor, dim: int, of: Range, wanted: Range) -> Tensor:
    """Those of the rows ``of`` that are wanted."""
    low, high = _overlap(of, wanted)
    return rows.narrow(dim, min(low - of[0], rows.shape[dim]) if high > low else 0, high - low)


def _fetch(rows: Tensor, exchange: Exchange) -> Tensor:
    """The rows held -> the rows needed, in order."""
    me, dim = exchange.rank, exchange.dim
    outgoing = {
        rank: _part(rows, dim, exchange.held[me], needed).contiguous() for rank, needed in enumerate(exchange.needed)
    }
    incoming = {}
    for rank, held in enumerate(exchange.held):
        low, high = _overlap(held, exchange.needed[me])
        shape = list(rows.shape)
        shape[dim] = high - low
        incoming[rank] = outgoing[me] if rank == me else rows.new_empty(shape)
    _trade(exchange, outgoing, incoming)
    return torch.cat([incoming[rank] for rank in sorted(incoming)], dim)


def _bring_home(rows: Tensor, exchange: Exchange) -> Tensor:
    """The transpose of _fetch: what each rank says of a row is added by its holder, in the order of ranks."""
    me, dim = exchange.rank, exchange.dim
    outgoing = {
        rank: _part(rows, dim, exchange.needed[me], held).contiguous() for rank, held in enumerate(exchange.held)
    }
    shape = list(rows.shape)
    places = {rank: _overlap(exchange.held[me], needed) for rank, needed in enumerate(exchange.needed)}
    incoming = {}
    for rank, (low, high) in places.items():
        shape[dim] = high - low
        incoming[rank] = outgoing[me] if rank == me else rows.new_empty(shape)
    _trade(exchange, outgoing, incoming)
    first, last = exchange.held[me]
    shape[dim] = last - first
    total = rows.new_zeros(shape)
    for rank, (low, high) in sorted(places.items()):
        if high > low:
            total.narrow(dim, low - first, high - low).add_(incoming[rank])
    return total


def _applied(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _Fetch(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return _fetch(rows, exchange)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _applied(_BringHome, grad, ctx.exchange), None


class _BringHome(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return _bring_home(rows, exchange)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _applied(_Fetch, grad, ctx.exchange), None


class _Gather(Function):
    """All rows; each rank's gradient of them is the same, and it keeps that of its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return _fetch(rows, exchange)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        first, last = ctx.exchange.held[ctx.exchange.rank]
        return grad.narrow(ctx.exchange.dim, first, last - first), None


class _SumGradients(Function):
    """The parameter itself; its gradient is the sum of all ranks'."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return parameter.view_as(parameter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _held(rows: Tensor, dim: int, group: Any) -> tuple[Range, ...]:
    """The rows of each rank, as ranges of the whole image's."""
    mine = torch.tensor([rows.shape[dim]], device=rows.device)
    heights = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(heights, mine, group=group)
    ends = torch.cat(heights).cumsum(0).tolist()
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def scatter_spatial(image: Tensor, group: Any = None, dim: int = 2) -> Tensor:
    """This rank's rows of an image that every rank has, cut along ``dim`` as :func:`torch.tensor_split` cuts."""
    return image.tensor_split(dist.get_world_size(group), dim)[dist.get_rank(group)].contiguous()


def gather_spatial(rows: Tensor, group: Any = None, dim: int = 2) -> Tensor:
    """The whole image from every rank's rows. A loss that every rank computes from it has the right gradients."""
    held = _held(rows, dim, group)
    everything = tuple((0, held[-1][1]) for _ in held)
    return _applied(_Gather, rows, Exchange(group, dim, held, everything))


# Who computes which outputs ------------------------------------------------------------------------------------------


def _shared_out(starts: Sequence[int], outputs: int, what: str) -> list[Range]:
    """Ranges from the first output of each rank; every rank must have some."""
    bounds = [0, *(min(max(start, 0), outputs) for start in starts[1:]), outputs]
    ranges = list(itertools.pairwise(bounds))
    if any(low >= high for low, high in ranges):
        raise ValueError(f"{what}: {outputs} rows of output cannot be shared out to {len(ranges)} ranks: {ranges}")
    return ranges


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class _Windows:
    """Of one layer along the cut dimension: the window of output o begins at ``o stride - before``."""

    what: str
    size: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    before: int

    def begin(self, output: int) -> int:
        return output * self.stride - self.before

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def outputs_of(self, held: Sequence[Range]) -> list[Range]:
        """An output is its holder's whose row is in the middle of the window."""
        middle = self.before - (self.reach - 1) // 2
        return _shared_out([_ceil_div(low + middle, self.stride) for low, _ in held], self.outputs, self.what)

    def seen(self, outputs: Range) -> Range:
        """The rows that these outputs' windows cover, some of them perhaps outside."""
        return self.begin(outputs[0]), self.begin(outputs[1] - 1) + self.reach

    def inside(self, seen: Range) -> Range:
        low, high = max(seen[0], 0), min(seen[1], self.size)
        if low >= high:
            raise ValueError(f"{self.what}: the windows of a rank lie in the padding altogether: rows {seen}")
        return low, high


def _halo(
    rows: Tensor, cut: Cut, held: tuple[Range, ...], windows: _Windows, mode: str = "zeros"
) -> tuple[Tensor, Range]:
    """The rows that this rank's windows see, and how many are padding before and after them."""
    seen = [windows.seen(outputs) for outputs in windows.outputs_of(held)]
    me = dist.get_rank(cut.group)
    if mode == "zeros":
        needed = tuple(windows.inside(s) for s in seen)
        ours = _applied(_Fetch, rows, Exchange(cut.group, cut.dim, held, needed))
        return ours, (needed[me][0] - seen[me][0], seen[me][1] - needed[me][1])
    shown = [[cast(int, padded_source(i, windows.size, mode)) for i in range(*s)] for s in seen]
    needed = tuple((min(places), max(places) + 1) for places in shown)
    ours = _applied(_Fetch, rows, Exchange(cut.group, cut.dim, held, needed))
    index = torch.tensor(shown[me], device=rows.device) - needed[me][0]
    return ours.index_select(cut.dim, index), (0, 0)


# Layers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """Along which dimension images are cut, and over which ranks."""

    group: Any
    dim: int

    def __deepcopy__(self, _: Any) -> Cut:
        return self  # a process group is not copied

    @property
    def axis(self) -> int:
        return self.dim - 2

    def whole(self, rows: Tensor) -> tuple[list[int], tuple[Range, ...]]:
        """The spatial sizes of the whole image, and who holds which rows of it."""
        held = _held(rows, self.dim, self.group)
        sizes = list(rows.shape[2:])
        sizes[self.axis] = held[-1][1]
        return sizes, held

    def shared(self, parameter: Tensor | None) -> Tensor | None:
        return None if parameter is None else _applied(_SumGradients, parameter, self.group)

    def pairs(self, flat: Sequence[int], at_cut: Range) -> list[Range]:
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        pairs[self.axis] = at_cut
        return pairs


class _SpatialLayer:
    """Mixed in before a layer of convext: the same layer, for images cut over ranks."""

    cut: Cut

    def _rows(self: Any, input: Tensor) -> Tensor:
        spatial = int(type(self).__name__[-2])
        rows, unbatched = batched(type(self).__name__, input, spatial)
        if unbatched:
            raise RuntimeError(f"{type(self).__name__}: expected a batch (n, c, *places), got {list(input.shape)}")
        return rows


class _SpatialConv(_SpatialLayer):
    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, cut, name = self._rows(input), self.cut, type(self).__name__
        places, held = cut.whole(rows)
        kernel, axis = list(weight.shape[2:]), cut.axis
        strides = expand(name, "stride", self.stride, len(kernel))
        dilations = expand(name, "dilation", self.dilation, len(kernel))
        flat = resolve(name, self.padding, places, kernel, strides, dilations)
        shape = ops.conv_output_shape([*rows.shape[:2], *places], weight.shape, strides, flat, dilations, self.groups)
        windows = _Windows(
            name, places[axis], shape[cut.dim], kernel[axis], strides[axis], dilations[axis], flat[2 * axis]
        )
        seen, outside = _halo(rows, cut, held, windows, self.padding_mode)
        options = {"padding_mode": self.padding_mode, "flip_kernel": self.flip_kernel, "algorithm": self.algorithm}
        arguments = (cut.shared(weight), cut.shared(bias), strides, cut.pairs(flat, outside), dilations, self.groups)
        return type(self)._function(seen, *arguments, **options)  # type: ignore[no-any-return]


class _SpatialConvTranspose(_SpatialLayer):
    """Input row i reaches the outputs ``i stride - before`` and on: who holds the middle of these computes them."""

    def forward(self: Any, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        rows, cut, name = self._rows(input), self.cut, type(self).__name__
        if output_size is not None:
            raise ValueError(f"{name}: output_size is not known of a cut image: give output_padding")
        places, held = cut.whole(rows)
        kernel, axis = list(self.weight.shape[2:]), cut.axis
        spatial = len(kernel)
        strides = expand(name, "stride", self.stride, spatial)
        dilations = expand(name, "dilation", self.dilation, spatial)
        extra = expand(name, "output_padding", self.output_padding, spatial)
        if any(e >= s for e, s in zip(extra, strides, strict=True)):
            raise ValueError(f"{name}: output_padding must be less than the stride, got {tuple(extra)}")
        sizes, flat = functional.transposed_output_size(name, places, kernel, strides, self.padding, extra, dilations)
        windows = _Windows(
            name, sizes[axis], places[axis], kernel[axis], strides[axis], dilations[axis], flat[2 * axis]
        )
        middle = (windows.reach - 1) // 2
        outputs = _shared_out([windows.begin(low) + middle for low, _ in held], sizes[axis], name)
        needed = tuple(
            _overlap(
                (_ceil_div(low + windows.before - windows.reach + 1, windows.stride),
                 (high - 1 + windows.before) // windows.stride + 1),
                (0, places[axis]),
            )
            for low, high in outputs
        )  # fmt: skip
        if any(low >= high for low, high in needed):
            raise ValueError(f"{name}: the outputs of a rank see no input: outputs {outputs}")
        seen = _applied(_Fetch, rows, Exchange(cut.group, cut.dim, held, needed))
        me = dist.get_rank(cut.group)
        (first, last), (low, high) = outputs[me], needed[me]
        sizes[axis] = last - first
        flat[2 * axis] = first - windows.begin(low)
        flat[2 * axis + 1] = max((windows.begin(high - 1) + windows.reach) - last, 0)
        shape = [rows.shape[0], self.weight.shape[1] * self.groups, *sizes]
        options = (strides, flat, dilations, self.groups, "zeros", self.flip_kernel, as_transposed(self.algorithm))
        output = autograd.conv_backward_input(seen, cast(Tensor, cut.shared(self.weight)), shape, *options)
        bias = cut.shared(self.bias)
        return output if bias is None else autograd.add_bias(output, bias)


class _SpatialPool(_SpatialLayer):
    def forward(self: Any, input: Tensor) -> Any:
        rows, cut, name = self._rows(input), self.cut, type(self).__name__
        if getattr(self, "return_indices", False):
            raise ValueError(f"{name}: indices into a cut image are not defined, got return_indices=True")
        (places, held), axis = cut.whole(rows), cut.axis
        window = functional.pool_window(name, places, self.kernel_size, self.stride, self.padding, self.dilation)
        kernel, strides, flat, dilations = window
        maximum = isinstance(self, torch.nn.modules.pooling._MaxPoolNd)
        op = "max_pool" if maximum else "avg_pool"
        shape = ops.pool_output_shape(op, [*rows.shape[:2], *places], kernel, strides, flat, dilations, self.ceil_mode)
        windows = _Windows(
            name, places[axis], shape[cut.dim], kernel[axis], strides[axis], dilations[axis], flat[2 * axis]
        )
        seen, (before, after) = _halo(rows, cut, held, windows)
        # what ceil_mode lets hang over is no padding
        pairs = cut.pairs(flat, (before, min(after, flat[2 * axis + 1])))
        options: dict[str, Any] = {"ceil_mode": self.ceil_mode, "algorithm": self.algorithm, "dilation": dilations}
        if not maximum:
            options["count_include_pad"] = self.count_include_pad
            options["divisor_override"] = getattr(self, "divisor_override", None)
        return type(self)._function(seen, kernel, strides, pairs, **options)


_MIXINS = {
    "Conv": _SpatialConv,
    "ConvTranspose": _SpatialConvTranspose,
    "MaxPool": _SpatialPool,
    "AvgPool": _SpatialPool,
}
_SPATIAL = {
    getattr(layers, f"{kind}{d}d"): type(f"Spatial{kind}{d}d", (mixin, getattr(layers, f"{kind}{d}d")), {})
    for kind, mixin in _MIXINS.items()
    for d in (1, 2, 3)
}
# Modules that look at one place at a time, and have no parameters whose gradients would have to be summed.
_POINTWISE = (
    torch.nn.Identity, torch.nn.ReLU, torch.nn.ReLU6, torch.nn.LeakyReLU, torch.nn.ELU, torch.nn.SELU, torch.nn.CELU,
    torch.nn.GELU, torch.nn.SiLU, torch.nn.Mish, torch.nn.Hardswish, torch.nn.Hardsigmoid, torch.nn.Hardtanh,
    torch.nn.Sigmoid, torch.nn.Tanh, torch.nn.Softplus, torch.nn.Softsign, torch.nn.LogSigmoid, torch.nn.Threshold,
    torch.nn.ChannelShuffle, torch.nn.Softmax2d,
)  # fmt: skip


@dataclass
class SpatialReport:
    """What :func:`spatial_shard` did: layers by their qualified name."""

    sharded: list[tuple[str, str]] = field(default_factory=list)
    """(name, type) of each layer that exchanges halos now."""
    left: list[tuple[str, str, str]] = field(default_factory=list)
    """(name, type, reason) of each other module that computes something of its own and is not known to be pointwise."""

    def __str__(self) -> str:
        lines = [f"sharded {len(self.sharded)} layers, left {len(self.left)}"]
        lines += [f"  {name}: {kind}" for name, kind in self.sharded]
        lines += [f"  {name}: {kind} left: {reason}" for name, kind, reason in self.left]
        return "\n".join(lines)


def _reason(module: torch.nn.Module) -> str:
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        return "right in evaluation; in training it would see this rank's rows alone"
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return "draws for this rank's rows alone"
    return "not known to look at one place at a time: put gather_spatial before it where it does not"


def spatial_shard(model: torch.nn.Module, group: Any = None, dim: int = 2) -> SpatialReport:
    """Makes the convolution and pooling layers of ``model``, in place, ones for images cut along ``dim`` over the ranks
    of ``group`` (all ranks if None); layers of torch.nn are converted first.

    Inputs are batched, (n, c, *places). Every form of stride, dilation, padding and padding mode; ValueError where a
    rank would be left without an output. The report names the other modules (functions called between them it cannot
    see): pointwise ones are fine, what looks at several places is not. Parameters must be the same on every rank; their
    gradients then are too.
    """
    convert(model)
    report = SpatialReport()
    cut = Cut(group, dim)
    for name, module in model.named_modules():
        ours: Any = _SPATIAL.get(type(module))
        if ours is not None:
            spatial = int(ours.__name__[-2])
            if not 2 <= dim < 2 + spatial:
                raise ValueError(
                    f"spatial_shard: dim must be one of {list(range(2, 2 + spatial))} for {name}, got {dim}"
                )
            module.__class__ = ours
            cast(Any, module).cut = cut
            report.sharded.append((name, ours.__name__))
        elif not any(module.children()) and not isinstance(module, (*_POINTWISE, *_SPATIAL.values())):
            report.left.append((name, type(module).__name__, _reason(module)))
    return report
