"""Bad calls: the exception torch raises for them. Deliberate differences stand at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import convext.functional
from tests import numerics, peer


def _input(channels: int = 4, spatial: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(2, channels, *[4] * spatial, dtype=dtype)


def _weight(outputs: int = 3, inputs: int = 4, spatial: int = 2, kernel: int = 2) -> torch.Tensor:
    return torch.zeros(outputs, inputs, *[kernel] * spatial)


# (name of the case, arguments after the function, keywords); run for every number of dimensions.
def conv_cases(spatial: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    x, w = _input(spatial=spatial), _weight(spatial=spatial)
    wrong_rank = (1,) * (spatial + 1)
    return {
        "input_rank_too_small": ((x[0, 0], w), {}),
        "input_rank_too_large": ((x[None, None], w), {}),
        "weight_rank_too_small": ((x, w[..., 0]), {}),
        "weight_rank_too_large": ((x, w[None]), {}),
        "channels": ((_input(5, spatial), w), {}),
        "channels_per_group": ((x, w), {"groups": 2}),
        "outputs_not_divisible_by_groups": ((x, _weight(3, 2, spatial)), {"groups": 2}),
        "fewer_outputs_than_groups": ((x, _weight(3, 1, spatial)), {"groups": 4}),
        "groups_0": ((x, w), {"groups": 0}),
        "groups_negative": ((x, w), {"groups": -1}),
        "groups_float": ((x, w), {"groups": 1.5}),
        "groups_none": ((x, w), {"groups": None}),
        "stride_0": ((x, w), {"stride": 0}),
        "stride_negative": ((x, w), {"stride": -1}),
        "stride_wrong_length": ((x, w), {"stride": wrong_rank}),
        "stride_float": ((x, w), {"stride": 1.5}),
        "stride_string": ((x, w), {"stride": "2"}),
        "stride_none": ((x, w), {"stride": None}),
        "padding_negative": ((x, w), {"padding": -1}),
        "padding_float": ((x, w), {"padding": 1.0}),
        "padding_none": ((x, w), {"padding": None}),
        "padding_unknown_string": ((x, w), {"padding": "full"}),
        "padding_wrong_length": ((x, w), {"padding": wrong_rank}),
        "dilation_0": ((x, w), {"dilation": 0}),
        "dilation_negative": ((x, w), {"dilation": -2}),
        "dilation_wrong_length": ((x, w), {"dilation": wrong_rank}),
        "dilation_string": ((x, w), {"dilation": "1"}),
        "kernel_larger_than_input": ((x, _weight(spatial=spatial, kernel=5)), {}),
        "kernel_larger_than_padded_input": ((x, _weight(spatial=spatial, kernel=8)), {"padding": 1}),
        "kernel_dilated_larger_than_input": ((x, w), {"dilation": 4}),
        "kernel_0": ((x, _weight(spatial=spatial, kernel=0)), {}),
        "empty_places": ((x[..., :0], w), {}),
        "bias_length": ((x, w, torch.zeros(4)), {}),
        "bias_rank": ((x, w, torch.zeros(3, 1)), {}),
        "bias_dtype": ((x, w, torch.zeros(3).double()), {}),
        "weight_dtype": ((x, w.double()), {}),
        "input_dtype": ((x.half(), w), {}),
        "input_integer": ((x.long(), w), {}),
        "input_none": ((None, w), {}),
        "weight_none": ((x, None), {}),
        "input_list": (([1.0, 2.0], w), {}),
        "no_weight": ((x,), {}),
        "unknown_keyword": ((x, w), {"pading": 1}),
    }


def transposed_cases(spatial: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    x, w = _input(spatial=spatial), _weight(4, 3, spatial)
    wrong_rank = (1,) * (spatial + 1)
    return {
        "input_rank_too_small": ((x[0, 0], w), {}),
        "input_rank_too_large": ((x[None, None], w), {}),
        "weight_rank_too_small": ((x, w[..., 0]), {}),
        "channels": ((_input(5, spatial), w), {}),
        "channels_not_divisible_by_groups": ((x, w), {"groups": 3}),
        "groups_0": ((x, w), {"groups": 0}),
        "groups_negative": ((x, w), {"groups": -1}),
        "stride_0": ((x, w), {"stride": 0}),
        "stride_wrong_length": ((x, w), {"stride": wrong_rank}),
        "stride_string": ((x, w), {"stride": "2"}),
        "padding_negative": ((x, w), {"padding": -1}),
        "padding_leaves_no_output": ((x, w), {"padding": 5}),
        "dilation_0": ((x, w), {"dilation": 0}),
        "output_padding_too_large": ((x, w), {"output_padding": 1}),
        "output_padding_too_large_with_stride": ((x, w), {"output_padding": 3, "stride": 3, "dilation": 2}),
        "output_padding_negative": ((x, w), {"output_padding": -1}),
        "output_padding_wrong_length": ((x, w), {"output_padding": wrong_rank, "stride": 2}),
        "output_padding_string": ((x, w), {"output_padding": "1", "stride": 2}),
        "bias_length": ((x, w, torch.zeros(4)), {}),
        "bias_dtype": ((x, w, torch.zeros(3).double()), {}),
        "weight_dtype": ((x, w.double()), {}),
        "input_none": ((None, w), {}),
    }


def pool_cases(spatial: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    x = _input(spatial=spatial)
    wrong_rank = (1,) * (spatial + 1)
    return {
        "input_rank_too_large": ((x[None], 2), {}),
        "empty_channels": ((x[:, :0], 2), {}),
        "empty_channels_unbatched": ((x[0, :0], 2), {}),
        "empty_places": ((x[..., :0], 2), {}),
        "kernel_0": ((x, 0), {}),
        "kernel_negative": ((x, -1), {}),
        "kernel_float": ((x, 2.0), {}),
        "kernel_string": ((x, "2"), {}),
        "kernel_none": ((x, None), {}),
        "kernel_wrong_length": ((x, wrong_rank), {}),
        "kernel_missing": ((x,), {}),
        "kernel_larger_than_input": ((x, 5), {}),
        "stride_0": ((x, 2), {"stride": 0}),
        "stride_negative": ((x, 2), {"stride": -1}),
        "stride_wrong_length": ((x, 2), {"stride": wrong_rank}),
        "stride_string": ((x, 2), {"stride": "2"}),
        "padding_negative": ((x, 2), {"padding": -1}),
        "padding_more_than_half": ((x, 2), {"padding": 2}),
        "padding_none": ((x, 2), {"padding": None}),
        "padding_wrong_length": ((x, 2), {"padding": wrong_rank}),
        "input_complex": ((x.to(torch.complex64), 2), {}),
        "input_bool": ((x.bool(), 2), {}),
        "input_none": ((None, 2), {}),
        "input_list": (([1.0], 2), {}),
        "unknown_keyword": ((x, 2), {"pading": 1}),
    }


MAX_CASES = {
    "dilation_0": {"dilation": 0},
    "dilation_negative": {"dilation": -1},
    "dilated_window_larger_than_input": {"dilation": 4},
}


def _all_calls() -> list[Any]:
    found = []
    for spatial in (1, 2, 3):
        tables = {
            f"conv{spatial}d": conv_cases(spatial),
            f"conv_transpose{spatial}d": transposed_cases(spatial),
            f"max_pool{spatial}d": pool_cases(spatial)
            | {name: ((_input(spatial=spatial), 2), kwargs) for name, kwargs in MAX_CASES.items()},
            f"avg_pool{spatial}d": pool_cases(spatial),
        }
        if spatial > 1:
            tables[f"avg_pool{spatial}d"]["divisor_0"] = ((_input(spatial=spatial), 2), {"divisor_override": 0})
        found += [
            pytest.param(op, *call, id=f"{op}-{name}") for op, calls in tables.items() for name, call in calls.items()
        ]
    return found


@pytest.mark.parametrize(("op", "args", "kwargs"), _all_calls())
def test_the_exception_is_torchs(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(Exception) as theirs:  # whatever torch raises
        getattr(F, op)(*args, **kwargs)
    with pytest.raises(Exception) as ours:
        getattr(convext.functional, op)(*args, **kwargs)
    assert type(ours.value) is theirs.type, f"{ours.value!r}, torch: {theirs.value!r}"
    assert str(ours.value).strip()


@pytest.mark.parametrize("name", peer.CONVOLUTIONS + peer.TRANSPOSED)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"groups": 0},
        {"groups": 3},
        {"groups": -1},
        {"padding_mode": "mirror"},
        {"padding": "full"},
        {"kernel_size": None},
        {"in_channels": "4"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_constructor_raises_torchs_exception(name: str, kwargs: dict[str, Any]) -> None:
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | kwargs
    if "padding" in kwargs and name in peer.TRANSPOSED:
        with pytest.raises(ValueError, match="Invalid padding string"):  # torch's transposed layers take no string
            getattr(convext.nn, name)(**arguments)
        return
    if kwargs == {"groups": 3}:
        arguments["in_channels"] = 3  # now the output channels of a transposed layer, the input's of the other, divide
        arguments["out_channels"] = 4
    with pytest.raises(Exception) as theirs:
        getattr(torch.nn, name)(**arguments)
    with pytest.raises(Exception) as ours:
        getattr(convext.nn, name)(**arguments)
    assert type(ours.value) is theirs.type, f"{ours.value!r}, torch: {theirs.value!r}"


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "symmetric"])
@pytest.mark.parametrize("name", peer.TRANSPOSED)
def test_a_transposed_layer_pads_with_zeros_alone(name: str, mode: str) -> None:
    with pytest.raises(ValueError, match=r"padding_mode|padding mode"):
        getattr(convext.nn, name)(2, 2, 3, padding_mode=mode)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_must_agree() -> None:
    x, w = torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3)
    for a, b in ((x.cuda(), w), (x, w.cuda())):
        with pytest.raises(RuntimeError, match="same device"):
            convext.functional.conv2d(a, b)


# Deliberate differences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_same_padding_takes_a_stride(spatial: int) -> None:
    """torch refuses; here the output has ceil(input / stride) places."""
    make = numerics.integers()
    x, w = make(2, 3, *peer.small_size(spatial)), make(4, 3, *[4] * spatial)
    with pytest.raises(RuntimeError, match="not supported for strided"):
        getattr(F, f"conv{spatial}d")(x, w, padding="same", stride=2)
    output = getattr(convext.functional, f"conv{spatial}d")(x, w, padding="same", stride=2)
    sides: list[int] = []
    for n in reversed(x.shape[2:]):
        total = (-(-n // 2) - 1) * 2 + 4 - n
        sides += [total // 2, total - total // 2]
    numerics.assert_equal(output, getattr(F, f"conv{spatial}d")(F.pad(x, sides), w, stride=2))


def test_no_input_channels_are_an_empty_sum() -> None:
    """torch returns an output without channels; here it has the weight's, holding the bias."""
    x, w, b = torch.empty(2, 0, 4, 4), torch.empty(3, 0, 2, 2), torch.tensor([1.0, 2.0, 3.0])
    assert F.conv2d(x, w, b).shape == (2, 0, 3, 3)
    numerics.assert_equal(convext.functional.conv2d(x, w, b), b.view(1, 3, 1, 1).expand(2, 3, 3, 3))


def test_a_transposed_convolution_has_at_least_one_output_place() -> None:
    """torch returns an empty map where the padding cuts everything away; here that is an error."""
    x, w = torch.zeros(2, 3, 1, 1), torch.zeros(3, 1, 2, 2)
    assert F.conv_transpose2d(x, w, padding=1).numel() == 0
    with pytest.raises(RuntimeError, match="empty"):
        convext.functional.conv_transpose2d(x, w, padding=1)


def test_average_pooling_may_see_more_than_a_small_input() -> None:
    """torch's avg_pool3d, unlike its avg_pool2d, refuses an input smaller than the window even where padding helps."""
    x = torch.ones(1, 1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="smaller than kernel"):
        F.avg_pool3d(x, 3, 1, 1)
    numerics.assert_within(
        convext.functional.avg_pool3d(x, 3, 1, 1),
        torch.full_like(x, 1 / 27).double(),
        torch.full_like(x, torch.finfo(torch.float32).eps / 27).double(),
    )


@pytest.mark.parametrize("spatial", [2, 3])
def test_average_pooling_of_too_few_dimensions_is_a_runtime_error(spatial: int) -> None:
    """torch's avg_pool2d says IndexError, its other functions RuntimeError."""
    with pytest.raises((RuntimeError, IndexError)):
        getattr(F, f"avg_pool{spatial}d")(torch.zeros(4, 4), 2)
    with pytest.raises(RuntimeError, match="Expected"):
        getattr(convext.functional, f"avg_pool{spatial}d")(torch.zeros(4, 4), 2)


@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_convolution_of_integers_is_not_implemented(op: str) -> None:
    """torch has a slow one on the CPU."""
    x, w = torch.ones(1, 1, 3, 3, dtype=torch.int64), torch.ones(1, 1, 2, 2, dtype=torch.int64)
    assert getattr(F, op)(x, w).dtype == torch.int64
    with pytest.raises(NotImplementedError, match="Long is not supported"):
        getattr(convext.functional, op)(x, w)


def test_average_pooling_of_integers_is_not_implemented() -> None:
    """torch takes int64, and no other integer."""
    assert F.avg_pool2d(torch.ones(1, 1, 2, 2, dtype=torch.int64), 2).item() == 1
    for dtype in numerics.INTEGERS:
        with pytest.raises(NotImplementedError, match="not supported"):
            convext.functional.avg_pool2d(torch.ones(1, 1, 2, 2, dtype=dtype), 2)


def test_a_maximum_over_nothing_is_minus_infinity() -> None:
    """Where padding and dilation make a window miss the input, torch's index lies outside the input; ours is 0."""
    x = torch.tensor([[[[7.0]]]], requires_grad=True)
    output, indices = convext.functional.max_pool2d(x, (1, 2), 1, (0, 1), (1, 2), return_indices=True)
    expected, torch_indices = F.max_pool2d(x.detach(), (1, 2), 1, (0, 1), (1, 2), return_indices=True)
    assert output.item() == expected.item() == -float("inf")
    assert torch_indices.item() >= x.numel()
    assert indices.item() == 0
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.item() == 0


def test_max_pooling_of_integers_in_one_dimension() -> None:
    """torch has it in two and three."""
    x = torch.tensor([[[3, 1, 2, 5]]])
    with pytest.raises(NotImplementedError):
        F.max_pool1d(x, 2)
    assert convext.functional.max_pool1d(x, 2).tolist() == [[[3, 5]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=numerics.name_of)
def test_average_pooling_of_16_bits_in_three_dimensions(dtype: torch.dtype) -> None:
    """torch has it in one and two."""
    x = torch.full((1, 1, 2, 2, 2), 3.0, dtype=dtype)
    with pytest.raises(NotImplementedError):
        F.avg_pool3d(x, 2)
    numerics.assert_equal(convext.functional.avg_pool3d(x, 2), x[..., :1, :1, :1])
