"""Bad calls of convext's own functions and operators: which exception, and that the message names argument and value.

That the exception is torch's wherever torch raises one is the subject of test_errors_like_torch.py. Nothing here may
crash, hang or ask for memory that no machine has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import convext
from convext import functional as F
from convext import ops
from tests import calls, numerics

X = torch.zeros(2, 6, 5, 7)
W = torch.zeros(4, 6, 3, 3)
HUGE = 2**31


def fails(exception: type[Exception], *fragments: object) -> Any:
    """pytest.raises, and the message contains every fragment, in this order."""
    return pytest.raises(exception, match="(?s)" + ".*".join(re.escape(str(f)) for f in fragments))


def expanded(*shape: int) -> Tensor:
    """A tensor of any size that occupies one element."""
    return torch.zeros(()).expand(shape)


# Convolution, arguments ----------------------------------------------------------------------------------------------

CONV_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], tuple[object, ...]]] = [
    ({"stride": 0}, RuntimeError, ("conv2d", "stride=[0, 0]")),
    ({"stride": (1, -1)}, RuntimeError, ("conv2d", "stride=[1, -1]")),
    ({"stride": (1, 2, 3)}, RuntimeError, ("conv2d", "stride", "2 ints", "(1, 2, 3)")),
    ({"stride": 1.5}, TypeError, ("conv2d", "stride=1.5")),
    ({"stride": True}, TypeError, ("conv2d", "stride=True")),
    ({"stride": HUGE}, RuntimeError, ("stride=", HUGE, "too large")),
    ({"padding": -1}, RuntimeError, ("conv2d", "negative padding", "[-1, -1, -1, -1]")),
    ({"padding": ((1, -2), (0, 0))}, RuntimeError, ("negative padding", "[1, -2, 0, 0]")),
    ({"padding": (1, 2, 3)}, RuntimeError, ("padding", "(1, 2, 3)")),
    ({"padding": ()}, RuntimeError, ("padding", "()")),
    ({"padding": ((1, 2),)}, RuntimeError, ("padding", "(before, after) pair per dimension", "((1, 2),)")),
    ({"padding": ((1, 2), (3,))}, RuntimeError, ("padding", "pair per dimension", "((1, 2), (3,))")),
    ({"padding": ((1, 2), 3)}, RuntimeError, ("padding", "pair per dimension", "((1, 2), 3)")),
    ({"padding": ((1.5, 1), (1, 1))}, TypeError, ("padding", "((1.5, 1), (1, 1))")),
    ({"padding": 0.5}, TypeError, ("padding=0.5",)),
    ({"padding": "full"}, RuntimeError, ("padding", "'full'", "'valid', 'same', 'same_lower'")),
    ({"padding": "same", "stride": 0}, RuntimeError, ("stride", "(0, 0)")),
    ({"padding": HUGE}, RuntimeError, ("padding=", HUGE, "too large")),
    ({"padding": HUGE - 1}, RuntimeError, ("conv2d", "too large to address")),
    ({"dilation": 0}, RuntimeError, ("dilation=[0, 0]",)),
    ({"dilation": (1, -3)}, RuntimeError, ("dilation=[1, -3]",)),
    ({"dilation": "2"}, TypeError, ("dilation='2'",)),
    ({"dilation": HUGE}, RuntimeError, ("dilation=", HUGE, "too large")),
    ({"dilation": HUGE - 1}, RuntimeError, ("conv2d", "kernel 3", f"dilation {HUGE - 1}", "padded input has 5")),
    ({"dilation": 3}, RuntimeError, ("conv2d", "kernel 3", "dilation 3", "7 places", "padded input has 5")),
    ({"groups": 0}, RuntimeError, ("groups=0",)),
    ({"groups": -2}, RuntimeError, ("groups=-2",)),
    ({"groups": 3}, RuntimeError, ("groups=3", "divisible", 4)),
    ({"groups": 2}, RuntimeError, ("6 input channels per group", "6 channels in 2 groups", "expected 12")),
    ({"groups": 8}, RuntimeError, ("groups=8", "at least 8", "[4, 6, 3, 3]")),
    ({"groups": HUGE}, RuntimeError, (f"groups={HUGE}", "too large")),
    ({"groups": 1.5}, TypeError, ("groups", "float")),
    ({"padding_mode": "mirror"}, RuntimeError, ("padding_mode", "'zeros', 'reflect'", "'mirror'")),
    ({"padding_mode": None}, TypeError, ("padding_mode", "None")),
    ({"padding_mode": "reflect", "padding": (5, 1)}, RuntimeError, ("'reflect'", "padding 5", "input size of 5")),
    ({"padding_mode": "circular", "padding": (1, 8)}, RuntimeError, ("'circular'", "padding 8", "input size of 7")),
    ({"padding_mode": "symmetric", "padding": ((6, 0), (0, 0))}, RuntimeError, ("'symmetric'", "padding 6", "of 5")),
    ({"flip_kernel": "yes"}, TypeError, ("flip_kernel", "str")),
    ({"algorithm": "fastest"}, ValueError, ("algorithm", "'auto'", "'naive'", "'fastest'")),
    ({"algorithm": ""}, ValueError, ("algorithm", "'auto'", "''")),
    ({"algorithm": None}, TypeError, ("algorithm", "None")),
]  # fmt: skip


def _name(case: tuple[dict[str, Any], type[Exception], tuple[object, ...]]) -> str:
    return ",".join(f"{k}={v!r}" for k, v in case[0].items())


@pytest.mark.parametrize("case", CONV_ARGUMENTS, ids=_name)
def test_convolution_arguments(case: tuple[dict[str, Any], type[Exception], tuple[object, ...]]) -> None:
    arguments, exception, fragments = case
    with fails(exception, *fragments):
        F.conv2d(X, W, **arguments)


@pytest.mark.parametrize("case", [c for c in CONV_ARGUMENTS if "flip_kernel" not in c[0]], ids=_name)
def test_explain_says_what_the_call_would(case: tuple[dict[str, Any], type[Exception], tuple[object, ...]]) -> None:
    arguments, exception, _fragments = case
    with pytest.raises(exception):
        convext.explain("conv2d", X, W, **arguments)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
def test_an_integer_beyond_64_bits(name: str) -> None:
    with pytest.raises((RuntimeError, OverflowError, TypeError), match=name):
        F.conv2d(X, W, **{name: 2**64})


# Convolution, tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 2, 5, 6])
def test_input_of_the_wrong_rank(rank: int) -> None:
    shape = [2] * rank
    with fails(RuntimeError, "conv2d", "3D (unbatched) or 4D (batched) input", shape):
        F.conv2d(torch.zeros(shape), W)


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 5, 6])
def test_weight_of_the_wrong_rank(rank: int) -> None:
    shape = [1] * rank
    with fails(RuntimeError, "conv2d", "weight", shape):
        F.conv2d(X, torch.zeros(shape))


def test_channels_that_do_not_match() -> None:
    expected = ("6 input channels per group", "5 channels in 1 groups", "expected 6")
    with fails(RuntimeError, "conv2d: weight has", *expected):
        F.conv2d(X[:, :5], W)
    with fails(RuntimeError, "conv1d: weight has", *expected):
        F.conv1d(X[:, :5, 0], W[..., 0])
    with fails(RuntimeError, "conv3d: weight has", *expected):
        F.conv3d(X[:, :5, None], W[:, :, None])


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), ()])
def test_bias_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with fails(RuntimeError, "conv2d", "bias", "4 elements", list(shape)):
        F.conv2d(X, W, torch.zeros(shape))


def test_kernel_larger_than_the_padded_input() -> None:
    with fails(RuntimeError, "conv2d", "kernel 8", "padded input has 7", "padding [1, 1, 0, 0]"):
        F.conv2d(X, torch.zeros(1, 6, 8, 3), padding=((1, 1), (0, 0)))


def test_sizes_of_zero() -> None:
    with fails(RuntimeError, "conv2d", "may be empty", "[2, 6, 0, 7]"):
        F.conv2d(X[:, :, :0], W, padding=2)
    with fails(RuntimeError, "kernel size", "[0, 3]"):
        F.conv2d(X, W[:, :, :0])
    with fails(RuntimeError, "conv2d", "weight", "at least 1", "[0, 6, 3, 3]"):
        F.conv2d(X, W[:0])
    with fails(RuntimeError, "weight has 0 input channels", "6 channels"):
        F.conv2d(X, W[:, :0])


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_tensors_too_large_to_address(spatial: int) -> None:
    op = f"conv{spatial}d"
    conv = getattr(F, op)
    one = torch.zeros(1, 1, *[1] * spatial)
    with fails(RuntimeError, op, 2**61, "too large"):
        conv(expanded(1, 1, *[1] * (spatial - 1), 2**61), one)
    with fails(RuntimeError, op, 2**40, "too large"):
        conv(one, expanded(1, 1, *[1] * (spatial - 1), 2**40))
    with fails(RuntimeError, op, "too large"):
        conv(one, expanded(2**60, 1, *[1] * spatial), padding=1)


def shape_or_refusal(call: Callable[[], Tensor]) -> tuple[int, ...] | str:
    """The shape of what the call returns, or the text of its RuntimeError."""
    try:
        return tuple(call().shape)
    except RuntimeError as error:
        return str(error)


def check_enormous(answer: tuple[int, ...] | str, size: int, expected: tuple[int, ...]) -> None:
    """Computed, or refused with the true size; no number that wrapped around."""
    if isinstance(answer, str):
        assert str(size) in answer
        assert not re.search(r"-\d{10}", answer), f"an overflowed number: {answer}"
    else:
        assert answer == expected


@pytest.mark.parametrize("size", [2**62, 2**63 - 1])
@pytest.mark.parametrize("padding", [0, 1, HUGE - 1])
def test_enormous_empty_tensors(size: int, padding: int) -> None:
    x, w = torch.empty(0, 1, size), torch.zeros(1, 1, 1)
    answer = shape_or_refusal(lambda: F.conv1d(x, w, padding=padding))
    check_enormous(answer, size, (0, 1, size + 2 * padding))


@pytest.mark.parametrize("size", [2**62, 2**63 - 1])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("pool", [F.max_pool1d, F.avg_pool1d])
def test_enormous_empty_tensors_in_pooling(pool: Any, size: int, ceil_mode: bool, stride: int) -> None:
    x = torch.empty(0, 1, size)
    answer = shape_or_refusal(lambda: pool(x, 2, stride=stride, padding=1, ceil_mode=ceil_mode))
    out = (size + (stride - 1 if ceil_mode else 0)) // stride + 1
    check_enormous(answer, size, (0, 1, out - (ceil_mode and (out - 1) * stride >= size + 1)))


@pytest.mark.parametrize("algorithm", calls.CONV_ALGORITHMS)
def test_the_largest_dilation_and_padding(algorithm: str) -> None:
    """All taps but the middle one see padding only: what is left is a convolution of one tap."""
    largest = HUGE - 1
    x, w = numerics.integers()(*X.shape), numerics.integers(seed=1)(*W.shape)
    calls.skip_if_refused(convext.explain("conv2d", x, w, padding=largest, dilation=largest), algorithm)
    expected = F.conv2d(x, w[:, :, 1:2, 1:2], algorithm="naive")
    numerics.assert_equal(F.conv2d(x, w, padding=largest, dilation=largest, algorithm=algorithm), expected)


def test_more_memory_than_there_is() -> None:
    """Addressable, not allocatable: the allocator's error."""
    with pytest.raises(RuntimeError, match="allocate"):
        F.conv1d(expanded(1, 1, 2**50), torch.zeros(1, 1, 1))
    with pytest.raises(RuntimeError, match="allocate"):
        F.max_pool1d(expanded(1, 1, 2**50), 1)
    with pytest.raises(RuntimeError, match="allocate"):  # in training: the arena's
        F.conv1d(expanded(1, 1, 2**50), torch.zeros(1, 1, 1, requires_grad=True))


# dtypes and devices --------------------------------------------------------------------------------------------------


def test_mixed_dtypes() -> None:
    with fails(RuntimeError, "Float", "weight", "Double"):
        F.conv2d(X, W.double())
    with fails(RuntimeError, "Float", "bias", "Half"):
        F.conv2d(X, W, torch.zeros(4).half())
    with fails(RuntimeError, "Half", "weight", "BFloat16"):
        F.conv2d(X.half(), W.bfloat16())


@pytest.mark.parametrize(
    "dtype", [*numerics.INTEGERS, torch.bool, torch.complex64, torch.complex128], ids=numerics.name_of
)
def test_dtypes_without_kernels(dtype: torch.dtype) -> None:
    expected = "expected float32, float64, float16 or bfloat16"
    with fails(NotImplementedError, "conv", "dtype", expected):
        F.conv2d(X.to(dtype), W.to(dtype))
    with fails(NotImplementedError, "conv", "dtype", expected):
        ops.conv_backward_bias(X.to(dtype))
    with fails(NotImplementedError, "avg_pool", expected):
        F.avg_pool2d(X.to(dtype), 2)
    if dtype not in numerics.INTEGERS:
        with fails(NotImplementedError, "max_pool", "dtype", "integer type"):
            F.max_pool2d(X.to(dtype), 2)


def test_operands_on_different_devices() -> None:
    """The only other device that every machine has is meta."""
    w, bias = W.to("meta"), torch.zeros(4, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="device"):
        F.conv2d(X, w)
    with pytest.raises((RuntimeError, NotImplementedError), match="device"):
        F.conv2d(X, W, bias)


def test_meta_tensors_have_shapes_and_errors() -> None:
    x, w = X.to("meta"), W.to("meta")
    assert F.conv2d(x, w, padding=1).shape == (2, 4, 5, 7)
    assert F.max_pool2d(x, 2).shape == (2, 6, 2, 3)
    with fails(RuntimeError, "weight has 6 input channels", "5 channels"):
        F.conv2d(x[:, :5], w)


@pytest.mark.skipif(convext.algorithms(device="cuda") != [], reason="this build has CUDA kernels")
def test_cuda_without_kernels_is_one_sentence() -> None:
    assert convext.algorithms("conv2d", "cuda") == []
    assert convext.algorithms("max_pool2d", "cuda") == []


@pytest.mark.parametrize("device", ["mps", "xla", "meta"])
def test_devices_without_kernels(device: str) -> None:
    with fails(ValueError, "device", "'cpu' or 'cuda'", f"'{device}'"):
        convext.algorithms("conv2d", device)


@pytest.mark.parametrize("op", ["conv4d", "conv", "", "max_pool", "lp_pool2d"])
def test_operations_that_do_not_exist(op: str) -> None:
    with fails(ValueError, "op", "conv2d", repr(op)):
        convext.algorithms(op)
    with fails(ValueError, "conv2d", repr(op)):
        convext.explain(op, X, W)


def test_explain_of_the_wrong_thing() -> None:
    with fails(ValueError, "direction", "'backward_input'", "'backward'"):
        convext.explain("conv2d", X, W, direction="backward")
    with fails(TypeError, "convolution or pooling layer", "Linear"):
        convext.explain(torch.nn.Linear(2, 2), X)


@pytest.mark.parametrize("wrong", [None, 3, "x", [1.0]], ids=repr)
def test_what_is_not_a_tensor(wrong: object) -> None:
    with pytest.raises(TypeError, match="input"):
        F.conv2d(wrong, W)
    with pytest.raises(TypeError, match="weight"):
        F.conv2d(X, wrong)
    with pytest.raises(TypeError, match="input"):
        F.max_pool2d(wrong, 2)


# Pooling -------------------------------------------------------------------------------------------------------------

POOL_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], tuple[object, ...]]] = [
    ({"kernel_size": 0}, RuntimeError, ("kernel_size=[0, 0]",)),
    ({"kernel_size": (2, -1)}, RuntimeError, ("kernel_size=[2, -1]",)),
    ({"kernel_size": (1, 2, 3)}, RuntimeError, ("kernel_size", "(1, 2, 3)")),
    ({"kernel_size": None}, TypeError, ("kernel_size=None",)),
    ({"kernel_size": 2.5}, TypeError, ("kernel_size=2.5",)),
    ({"kernel_size": HUGE}, RuntimeError, ("kernel_size=", HUGE, "too large")),
    ({"kernel_size": HUGE - 1}, RuntimeError, ("too small", HUGE - 1, "input of 5")),
    ({"kernel_size": HUGE - 1, "padding": HUGE // 2 - 1}, RuntimeError, ("kernel_size=", HUGE - 1, "too large")),
    ({"kernel_size": 6}, RuntimeError, ("too small", "window of 6", "input of 5")),
    ({"kernel_size": 2, "stride": 0}, RuntimeError, ("stride=[0, 0]",)),
    ({"kernel_size": 2, "stride": (1, -1)}, RuntimeError, ("stride=[1, -1]",)),
    ({"kernel_size": 2, "stride": 1.5}, TypeError, ("stride=1.5",)),
    ({"kernel_size": 2, "stride": HUGE}, RuntimeError, ("stride=", HUGE, "too large")),
    ({"kernel_size": 2, "padding": -1}, RuntimeError, ("padding=[-1, -1, -1, -1]",)),
    ({"kernel_size": 2, "padding": 2}, RuntimeError, ("half", "kernel size 2", "padding [2, 2, 2, 2]")),
    ({"kernel_size": 3, "padding": ((3, 0), (0, 0))}, RuntimeError, ("kernel size 3", "padding [3, 0, 0, 0]")),
    ({"kernel_size": 3, "padding": "full"}, RuntimeError, ("padding", "'full'", "'same'")),
    ({"kernel_size": 3, "padding": HUGE}, RuntimeError, ("padding=", HUGE, "too large")),
    ({"kernel_size": 2, "dilation": 0}, RuntimeError, ("dilation=[0, 0]",)),
    ({"kernel_size": 2, "dilation": 5}, RuntimeError, ("too small", "window of 6", "input of 5")),
    ({"kernel_size": 2, "dilation": HUGE - 1}, RuntimeError, ("too small", f"window of {HUGE}", "input of 5")),
    ({"kernel_size": 2, "algorithm": "fastest"}, ValueError, ("algorithm", "'auto'", "'naive'", "'fastest'")),
    ({"kernel_size": 2, "algorithm": 3}, TypeError, ("algorithm", 3)),
]  # fmt: skip


@pytest.mark.parametrize("case", POOL_ARGUMENTS, ids=_name)
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_pooling_arguments(pool: Any, case: tuple[dict[str, Any], type[Exception], tuple[object, ...]]) -> None:
    arguments, exception, fragments = case
    with fails(exception, *fragments):
        pool(X, **arguments)


def test_divisor() -> None:
    with fails(RuntimeError, "divisor", 0):
        F.avg_pool2d(X, 2, divisor_override=0)
    with fails(TypeError, "divisor_override", "float"):
        F.avg_pool2d(X, 2, divisor_override=1.5)


@pytest.mark.parametrize("shape", [(), (2,), (2, 2), (2, 6, 0, 7), (2, 0, 5, 7), (1, 1, 1, 2, 2)])
def test_pooling_input_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    for op in ("max_pool2d", "avg_pool2d"):
        with fails(RuntimeError, op, list(shape)):
            getattr(F, op)(torch.zeros(shape), 2)
