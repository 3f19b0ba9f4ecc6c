"""Which algorithms there are, which one a call would run, and why not the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convext import _C, functional
from convext.arguments import expand
from convext.functional.convolution import as_transposed
from convext.ops import is_channels_last

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
POOLS = tuple(f"{how}{kind}_pool{d}d" for how in ("", "adaptive_") for kind in ("max", "avg") for d in (1, 2, 3))
DIRECTIONS = ("forward", "backward_input", "backward_weight")


def set_winograd(mode: str) -> None:
    """Which Winograd tiles convolutions of this process may use.

    ``"off"``: ``algorithm="auto"`` never chooses winograd. ``"accurate"`` (the default): tiles whose norm-wise error is
    below 2.5e-6 in float32. ``"fast"``: larger ones too, for 5x5 kernels, with an error up to 1e-5.

    A single layer or call says it itself, after a colon: ``algorithm="auto:off"``, ``"winograd:fast"``. Raises
    ValueError for another mode.
    """
    _C.set_winograd_mode(mode)


def winograd() -> str:
    """The mode :func:`set_winograd` chose."""
    return _C.winograd_mode()


def packed_weight_bytes() -> int:
    """Bytes of all packed weights that are kept, see :func:`clear_packed_weights`."""
    return _C.packed_weight_bytes()


def clear_packed_weights() -> None:
    """Forgets every packed weight.

    im2col and winograd bring a weight into their own order first, and keep that while the weight is unchanged: its
    storage, shape, version counter and a sample of its numbers are compared at every call. Nothing is kept while the
    weight is trained, nor past its life. Only an edit of single numbers behind torch's back (through ``.data`` or
    numpy) can go unseen: call this after one.
    """
    _C.clear_packed_weights()


def algorithms(op: str = "conv2d", device: str | torch.device = "cpu") -> list[str]:
    """Names of the algorithms for an operation (``"conv2d"``, ``"max_pool3d"``, ...) on a device type, best first.

    Each is accepted as ``algorithm=``, as is ``"auto"``. Empty for CUDA where convext was built without CUDA kernels.
    Raises ValueError for an unknown operation or device.
    """
    kind = torch.device(device).type
    if op in CONVOLUTIONS:
        return _C.conv_algorithms(kind)
    if op in POOLS:
        return _C.pool_algorithms(kind)
    raise ValueError(f"op must be one of {CONVOLUTIONS + POOLS}, got {op!r}")


@dataclass(frozen=True)
class Verdict:
    """What one algorithm says of a call."""

    name: str
    refusal: str | None
    """Why it cannot do the call; None where it can."""
    workspace_bytes: int
    estimate: float | None = None
    """Seconds for a batch of 16 by the model that "auto" follows on a GPU; None on the CPU and for pooling."""


@dataclass(frozen=True)
class Explanation:
    """What a call runs: ``chosen`` is the algorithm, ``verdicts`` what each in the table says, best first."""

    call: str
    direction: str
    chosen: str
    asked: str
    verdicts: tuple[Verdict, ...]
    tuned: bool = False
    """Whether the choice was measured: :func:`convext.tune`."""

    def __str__(self) -> str:
        why = " (named)" if not self.asked.startswith("auto") else " (tuned)" if self.tuned else ""
        lines = [f"{self.call}, {self.direction}: {self.chosen}{why}"]
        width = max([8, *(len(verdict.name) for verdict in self.verdicts)])
        for verdict in self.verdicts:
            if verdict.refusal is not None:
                said = f"cannot: {verdict.refusal}"
            else:
                said = "runs" if verdict.name == self.chosen else "could run"
                said += f", workspace {verdict.workspace_bytes / 1024:.0f} kB" if verdict.workspace_bytes else ""
                said += f", estimate {1e6 * verdict.estimate:.3g} us" if verdict.estimate is not None else ""
            lines.append(f"  {verdict.name:<{width}} {said}")
        return "\n".join(lines)


def _explanation(
    answer: _C.Answer, direction: str, asked: str, estimates: Callable[[list[str]], dict[str, float]] | None = None
) -> Explanation:
    """``estimates`` gives the seconds of the algorithms that can do the call."""
    call, chosen, verdicts, tuned = answer
    if chosen is None:
        raise NotImplementedError("this convext was built without CUDA kernels: there is nothing to choose from")
    seconds = estimates([name for name, refusal, _ in verdicts if refusal is None]) if estimates else {}
    told = tuple(Verdict(*verdict, seconds.get(verdict[0])) for verdict in verdicts)
    return Explanation(call, direction, chosen, asked, told, tuned)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _explain_conv(
    op: str,
    direction: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    algorithm: str = "auto",
) -> Explanation:
    x = input if input.dim() == weight.dim() else input.unsqueeze(0)
    strides, pads, dilations, groups, *_ = functional.conv_options(
        op, x.shape[2:], weight.shape[2:], stride, padding, dilation, groups, padding_mode, flip_kernel, algorithm
    )
    return _ask_conv(
        list(x.shape), x, weight, strides, pads, dilations, groups, padding_mode, flip_kernel, direction, algorithm
    )


def _ask_conv(
    shape: list[int],
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    direction: str,
    asked: str,
) -> Explanation:
    channels_last = is_channels_last(x) or is_channels_last(weight)
    layer = (stride, padding, dilation, groups, padding_mode, flip_kernel, channels_last)
    call = (shape, list(weight.shape), *layer)
    about = (_name_of(x.dtype), direction, asked)

    def estimates(able: list[str]) -> dict[str, float]:
        return _C.cuda_model(*call, *about, able)[1] if able else {}

    answer = _C.explain_conv(*call, "cuda" if x.is_cuda else "cpu", *about)
    return _explanation(answer, direction, asked, estimates if x.is_cuda else None)


def _explain_conv_transpose(
    op: str,
    direction: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    flip_kernel: bool = False,
    algorithm: str = "auto",
) -> Explanation:
    spatial = weight.dim() - 2
    x = input if input.dim() == weight.dim() else input.unsqueeze(0)
    strides, dilations = expand(op, "stride", stride, spatial), expand(op, "dilation", dilation, spatial)
    extra = expand(op, "output_padding", output_padding, spatial)
    sizes, pads = functional.transposed_output_size(
        op, x.shape[2:], weight.shape[2:], strides, padding, extra, dilations
    )
    shape = [x.shape[0], weight.shape[1] * groups, *sizes]
    mirrored = {"forward": "backward_input", "backward_input": "forward"}.get(direction, direction)
    asked = as_transposed(algorithm)
    found = _ask_conv(shape, x, weight, strides, pads, dilations, groups, "zeros", flip_kernel, mirrored, asked)
    return replace(found, asked=algorithm)


def _explain_max_pool(
    op: str,
    direction: str,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algorithm: str = "auto",
) -> Explanation:
    x = _with_batch(op, input)
    window = functional.pool_window(op, x.shape[2:], kernel_size, stride, padding, dilation)
    return _ask_pool(op, direction, x, (*window, ceil_mode), True, None, algorithm)


def _explain_avg_pool(
    op: str,
    direction: str,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
    algorithm: str = "auto",
) -> Explanation:
    x = _with_batch(op, input)
    window = functional.pool_window(op, x.shape[2:], kernel_size, stride, padding, dilation)
    return _ask_pool(op, direction, x, (*window, ceil_mode), count_include_pad, divisor_override, algorithm)


def _explain_adaptive_pool(
    op: str,
    direction: str,
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
    *,
    algorithm: str = "auto",
) -> Explanation:
    x = _with_batch(op, input)
    window = functional.adaptive_window(op, x.shape[2:], output_size)
    return _ask_pool(op.removeprefix("adaptive_"), direction, x, window, True, None, algorithm)


def _with_batch(op: str, input: Tensor) -> Tensor:
    return input if input.dim() == int(op[-2]) + 2 else input.unsqueeze(0)


def _ask_pool(
    op: str,
    direction: str,
    x: Tensor,
    window: tuple[Any, ...],
    count_include_pad: bool,
    divisor_override: int | None,
    asked: str,
) -> Explanation:
    kernel, stride, padding, dilation, ceil_mode = window
    answer = _C.explain_pool(
        op[:-2],
        list(x.shape),
        kernel,
        stride,
        padding,
        dilation,
        ceil_mode,
        count_include_pad,
        divisor_override,
        is_channels_last(x),
        "cuda" if x.is_cuda else "cpu",
        _name_of(x.dtype),
        "forward" if direction == "forward" else "backward_input",
        asked,
    )
    return _explanation(answer, direction, asked)


def _layer_call(layer: torch.nn.Module) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The functional name, positional arguments after the input and keywords that a layer's forward comes to."""
    extras = {"algorithm": getattr(layer, "algorithm", "auto")}
    if isinstance(layer, torch.nn.modules.conv._ConvTransposeNd):
        extras["flip_kernel"] = getattr(layer, "flip_kernel", False)
        after = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return f"conv_transpose{layer.weight.dim() - 2}d", (layer.weight, layer.bias, *after), extras
    if isinstance(layer, torch.nn.modules.conv._ConvNd):
        extras |= {"flip_kernel": getattr(layer, "flip_kernel", False), "padding_mode": layer.padding_mode}
        rest = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return f"conv{layer.weight.dim() - 2}d", (layer.weight, layer.bias, *rest), extras
    kind = next((kind for kind, layers in _POOL_LAYERS.items() if isinstance(layer, layers)), None)
    if kind is None:
        raise TypeError(f"explain: expected a convolution or pooling layer, got {type(layer).__name__}")
    op = f"{kind}{type_dimensions(layer)}d"
    if kind.startswith("adaptive"):
        return op, (layer.output_size,), extras
    extras |= {"dilation": getattr(layer, "dilation", 1), "ceil_mode": layer.ceil_mode}
    if kind == "avg_pool":
        extras["count_include_pad"] = layer.count_include_pad
        extras["divisor_override"] = getattr(layer, "divisor_override", None)
    return op, (layer.kernel_size, layer.stride, layer.padding), extras


def type_dimensions(layer: torch.nn.Module) -> int:
    """1, 2 or 3: the digit in the name of the torch.nn class that the layer is, or derives from."""
    for kind in type(layer).__mro__:
        if kind.__module__.startswith("torch.nn") and kind.__name__[-2:-1].isdigit():
            return int(kind.__name__[-2])
    raise TypeError(f"expected a layer of 1, 2 or 3 dimensions, got {type(layer).__name__}")


_POOL_LAYERS: dict[str, Any] = {
    "max_pool": torch.nn.modules.pooling._MaxPoolNd,
    "avg_pool": torch.nn.modules.pooling._AvgPoolNd,
    "adaptive_max_pool": torch.nn.modules.pooling._AdaptiveMaxPoolNd,
    "adaptive_avg_pool": torch.nn.modules.pooling._AdaptiveAvgPoolNd,
}


def explain(what: str | torch.nn.Module, *args: Any, direction: str = "forward", **kwargs: Any) -> Explanation:
    """Which algorithm a call runs, and what every other one says of it. Nothing is computed.

    ``explain(layer, input)`` for a layer of convext or torch.nn; ``explain("conv2d", input, weight, stride=2)`` for a
    function of :mod:`convext.functional` and its arguments. Only shapes, dtypes, devices and memory formats of the
    tensors are read. ``direction`` is ``"forward"``, ``"backward_input"`` or ``"backward_weight"``.

    Raises what the call itself would raise for arguments that do not fit.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")
    if isinstance(what, torch.nn.Module):
        op, rest, extras = _layer_call(what)
        args, kwargs = (*args, *rest), {**kwargs, **extras}
    else:
        op = what
    if op in CONVOLUTIONS:
        explain_one: Any = _explain_conv_transpose if "transpose" in op else _explain_conv
    elif op in POOLS:
        kinds = {"max": _explain_max_pool, "avg": _explain_avg_pool, "ada": _explain_adaptive_pool}
        explain_one = kinds[op[:3]]
    else:
        raise ValueError(f"explain: expected a layer or one of {CONVOLUTIONS + POOLS}, got {what!r}")
    return explain_one(op, direction, *args, **kwargs)  # type: ignore[no-any-return]
