from collections.abc import Callable
from typing import Any

from torch import Tensor

Verdict = tuple[str, str | None, int]
Answer = tuple[str, str | None, list[Verdict], bool]

def conv_algorithms(device: str) -> list[str]: ...
def pool_algorithms(device: str) -> list[str]: ...
def conv_output_shape(
    input: list[int],
    weight: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
) -> list[int]: ...
def pool_output_shape(
    op: str,
    input: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> list[int]: ...
def explain_conv(
    input: list[int],
    weight: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    channels_last: bool,
    device: str,
    dtype: str,
    direction: str,
    algorithm: str,
) -> Answer: ...
def cuda_model(
    input: list[int],
    weight: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    channels_last: bool,
    dtype: str,
    direction: str,
    algorithm: str,
    able: list[str],
    gpu: tuple[int, int] | None = None,
) -> tuple[str, dict[str, float]]: ...
def explain_pool(
    op: str,
    input: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
    device: str,
    dtype: str,
    direction: str,
    algorithm: str,
) -> Answer: ...
def set_tuned_conv(
    input: list[int],
    weight: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
    flip_kernel: bool,
    channels_last: bool,
    device: str,
    dtype: str,
    direction: str,
    winograd: str,
    algorithm: str | None,
) -> None: ...
def set_tuned_pool(
    op: str,
    input: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
    device: str,
    dtype: str,
    direction: str,
    algorithm: str | None,
) -> None: ...
def clear_tuned() -> None: ...
def workspace_limit() -> int | None: ...
def set_workspace_limit(limit: int | None) -> None: ...
def active_isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def winograd_mode() -> str: ...
def set_winograd_mode(name: str) -> None: ...

TRANSPOSED: str

def parse_algorithm(algorithm: str) -> tuple[str, str]: ...
def packed_weight_bytes() -> int: ...
def clear_packed_weights() -> None: ...
def keep_packed_weights(keep: bool) -> bool: ...
def forget_packed_weight(weight: object) -> None: ...
def max_threads() -> int: ...
def parts_per_thread(tasks: int, parts: int = ..., microseconds: list[int] = ...) -> list[int]: ...
def start_phases() -> bool: ...
def stop_phases() -> list[tuple[str, int, int, int]]: ...
def set_poison(on: bool) -> None: ...
def built_with_cuda() -> bool: ...
def compiler() -> str: ...

# The short roads of convext.functional (csrc/calls.cpp): the function called, its spatial dimensions, its arguments.
def conv(
    function: Callable[..., Any],
    spatial: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    flip_kernel: Any,
    algorithm: Any,
    /,
) -> Tensor: ...
def conv_fused(function: Callable[..., Any], spatial: int, *arguments: Any) -> Any: ...
def conv_transpose(
    function: Callable[..., Any],
    spatial: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    flip_kernel: Any,
    algorithm: Any,
    /,
) -> Tensor: ...
def max_pool(
    function: Callable[..., Any],
    spatial: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    return_indices: Any,
    algorithm: Any,
    /,
) -> Any: ...
def avg_pool(
    function: Callable[..., Any],
    spatial: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
    divisor_override: Any,
    dilation: Any,
    algorithm: Any,
    /,
) -> Tensor: ...
def adaptive_max_pool(
    function: Callable[..., Any],
    spatial: int,
    input: Any,
    output_size: Any,
    return_indices: Any,
    algorithm: Any,
    /,
) -> Any: ...
def adaptive_avg_pool(
    function: Callable[..., Any],
    spatial: int,
    input: Any,
    output_size: Any,
    algorithm: Any,
    /,
) -> Tensor: ...
def layers(input: Any, layers: tuple[tuple[Any, ...], ...], residual: Any, /) -> Tensor | None: ...

class Program:
    inputs: int
    def __init__(
        self, inputs: int, steps: list[tuple[str, Any, list[Any], dict[str, Any], list[int]]], output: Any
    ) -> None: ...

def channels_last(input: Any, /) -> Tensor | None: ...
def run_program(program: Program, module: Any, /, *inputs: Any) -> Any: ...
def set_layer_road(
    type: type,
    road: str,
    spatial: tuple[Any, ...],
    arguments: list[tuple[Any, ...]],
    in_chain: list[tuple[Any, ...]],
) -> None: ...
def activations() -> list[str]: ...
def use_arena(on: bool) -> bool: ...
def trim_arena() -> None: ...
def arena_bytes() -> tuple[int, int]: ...
def lp_pool(
    function: Callable[..., Any],
    spatial: int,
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any,
    ceil_mode: bool,
    padding: Any,
    dilation: Any,
    algorithm: str,
    /,
) -> Any: ...
def batch_norm(
    function: Callable[..., Any],
    spatial: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    a: float,
    b: float,
    /,
) -> Any: ...
def max_unpool(
    function: Callable[..., Any],
    spatial: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
    /,
) -> Tensor: ...
def k_max_pool1d(
    function: Callable[..., Any], spatial: int, input: Tensor, k: int, dim: int, return_indices: bool, /
) -> Any: ...
def k_max_pool(function: Callable[..., Any], spatial: int, input: Tensor, k: int, return_indices: bool, /) -> Any: ...
def fractional_max_pool(
    function: Callable[..., Any],
    spatial: int,
    input: Tensor,
    kernel_size: Any,
    output_size: Any,
    output_ratio: Any,
    return_indices: bool,
    samples: Any,
    /,
) -> Any: ...
def set_long_road(name: str, function: Callable[..., Any]) -> None: ...
