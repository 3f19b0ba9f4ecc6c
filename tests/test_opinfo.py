"""The sample inputs and the error inputs that ship in the torch wheel, for every function convext has.

Outputs and gradients of each sample are held to torch's: max pooling exactly, the rest to the derived bound around
torch's float64 result. Each error input raises the exception torch promises; where our text differs from torch's, the
difference is listed.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import ErrorInput, OpInfo, SampleInput

import convext.functional
from tests import numerics, peer

KINDS = ("conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "max_unpool")
NAMES = (*(f"{kind}{d}d" for kind in KINDS for d in (1, 2, 3)), "fractional_max_pool2d", "fractional_max_pool3d")
"""All that the wheel has samples of; of power averages it has none."""
OPS: dict[str, OpInfo] = {
    op.name.removeprefix("nn.functional."): op
    for op in op_db
    if op.name.removeprefix("nn.functional.") in NAMES and not op.variant_test_name
}

# Error inputs that are no errors here.
SUPPORTED_HERE = {"padding='same' is not supported for strided convolutions"}

# torch's texts that ours do not contain, and what ours say instead. Where an input is wrong in two ways, convext may
# name the other one.
OTHER_TEXTS = {
    "stride must be greater than zero, but got 0": "stride must be greater than zero, got stride=[0]",
    "dilation must be greater than zero, but got 0": "dilation must be greater than zero, got dilation=[0]",
    "pad should be at most half of effective kernel size": "non-batch dimensions to have positive length",
    "non-empty 4D or 5D": "Expected 4D or 5D",
    "internal error": "output_size must be",
}


def test_every_function_is_in_the_wheel() -> None:
    assert sorted(OPS) == sorted(NAMES)


def _operands(sample: SampleInput) -> list[Tensor]:
    return [t for t in (sample.input, *sample.args) if isinstance(t, Tensor)]


def _call(function: Any, sample: SampleInput) -> Any:
    """function of the sample's tensors, everything else being the sample's."""

    def with_tensors(*tensors: Tensor) -> Any:
        left = iter(tensors)
        args = [next(left) if isinstance(t, Tensor) else t for t in (sample.input, *sample.args)]
        return function(*args, **sample.kwargs)

    return with_tensors


def _check_exactly(name: str, sample: SampleInput) -> None:
    x, *fixed = [t.detach() for t in _operands(sample)]
    ours, theirs = (_call(getattr(of, name), sample) for of in (convext.functional, F))
    outputs = []
    for function in (ours, theirs):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        torch.manual_seed(0)  # fractional pooling draws
        result = function(leaf, *fixed)
        values = result if isinstance(result, tuple) else (result,)
        grad_output = numerics.integers(x.dtype, largest=1)(*values[0].shape)
        outputs.append([*(v.detach() for v in values), *torch.autograd.grad(values[0], leaf, grad_output)])
    for actual, expected in zip(*outputs, strict=True):
        numerics.assert_equal(actual, expected, str(sample.kwargs))


def _check_within_the_bound(name: str, sample: SampleInput, dtype: torch.dtype) -> None:
    operands = [t.detach() for t in _operands(sample)]
    terms = None
    if name.startswith("adaptive_avg"):
        terms = math.prod(sample.input.shape[-peer.spatial_of(name) :]) + 2
    if name.startswith("avg_pool"):
        kernel = sample.kwargs["kernel_size"] if "kernel_size" in sample.kwargs else sample.args[0]
        sizes = (kernel,) if isinstance(kernel, int) else kernel
        terms = math.prod(sizes) ** (peer.spatial_of(name) if len(sizes) == 1 else 1) + 2
    stored = 2 if name.startswith("conv_transpose") and len(operands) == 3 else 1
    ours, theirs = (_call(getattr(of, name), sample) for of in (convext.functional, F))
    peer.assert_agree(ours, theirs, operands, numerics.normals(dtype), terms, stored)


@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str, dtype: torch.dtype) -> None:
    samples = list(OPS[name].sample_inputs_func(OPS[name], "cpu", dtype, True))
    assert len(samples) > 5
    for sample in samples:
        if "max" in name:
            _check_exactly(name, sample)
        else:
            _check_within_the_bound(name, sample, dtype)


def _errors() -> list[Any]:
    found = []
    for name in NAMES:
        if OPS[name].error_inputs_func is None:
            continue
        # op.error_inputs and op.sample_inputs would note for every input which test asked, at a tenth of a second each.
        for i, error in enumerate(OPS[name].error_inputs_func(OPS[name], "cpu")):
            found.append(pytest.param(name, error, id=f"{name}-{i}"))
    return found


ERRORS = _errors()


@pytest.mark.parametrize(("name", "error"), ERRORS)
def test_error_inputs(name: str, error: ErrorInput) -> None:
    sample = error.sample_input
    call = _call(getattr(convext.functional, name), sample)
    if error.error_regex in SUPPORTED_HERE:
        assert call(*_operands(sample)).numel() > 0
        return
    with pytest.raises(error.error_type) as ours:
        call(*_operands(sample))
    if re.search(error.error_regex, str(ours.value)) is None:
        assert OTHER_TEXTS[error.error_regex] in str(ours.value)


def test_most_error_texts_contain_torchs() -> None:
    """And no excuse in the list above is stale."""
    same, other = 0, set()
    for name, error in (p.values for p in ERRORS):
        if error.error_regex in SUPPORTED_HERE:
            continue
        with pytest.raises(error.error_type) as ours:
            _call(getattr(convext.functional, name), error.sample_input)(*_operands(error.sample_input))
        if re.search(error.error_regex, str(ours.value)):
            same += 1
        else:
            other.add(error.error_regex)
    assert other == set(OTHER_TEXTS)
    assert same > 2 * (len(ERRORS) - same)
