Verdict = tuple[str, str | None, int]

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
) -> tuple[str, str | None, list[Verdict]]: ...
def explain_pool(
    op: str,
    input: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    channels_last: bool,
    device: str,
    dtype: str,
) -> tuple[str, str | None, list[Verdict]]: ...
def active_isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def winograd_mode() -> str: ...
def set_winograd_mode(name: str) -> None: ...
def packed_weight_bytes() -> int: ...
def clear_packed_weights() -> None: ...
def max_threads() -> int: ...
def tasks_per_thread(tasks: int) -> list[int]: ...
def set_poison(on: bool) -> None: ...
def built_with_cuda() -> bool: ...
def compiler() -> str: ...
