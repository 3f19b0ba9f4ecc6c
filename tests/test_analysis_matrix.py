"""convext.analysis.convolution_matrix: exactly the convolution, and transposed exactly its gradient, in integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import convext.functional as C
from convext import ops
from convext.analysis import convolution_matrix
from convext.padding import PADDING_MODES

CONV = {1: C.conv1d, 2: C.conv2d, 3: C.conv3d}
CONV_TRANSPOSE = {1: C.conv_transpose1d, 2: C.conv_transpose2d, 3: C.conv_transpose3d}

CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [  # weight, places, options
    ((2, 3, 3), (7,), {}),
    ((4, 2, 4), (9,), {"stride": 2, "padding": "same", "groups": 2}),
    ((2, 1, 3), (8,), {"padding": ((2, 0),), "dilation": 2, "groups": 2}),
    ((2, 2, 3, 3), (5, 6), {"padding": 2}),
    ((3, 2, 2, 3), (6, 5), {"stride": (2, 1), "padding": "same_lower", "dilation": (1, 2)}),
    ((4, 1, 3, 3), (5, 5), {"padding": ((0, 2), (1, 3)), "groups": 4, "stride": 3}),
    ((2, 1, 5, 1), (5, 4), {"padding": (4, 0)}),
    ((2, 2, 2, 1, 3), (3, 4, 5), {"padding": ((1, 0), (0, 0), (1, 1)), "stride": (1, 2, 2)}),
    ((2, 1, 3, 3, 3), (4, 4, 4), {"padding": "same", "groups": 2, "dilation": 1}),
]


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-9, 10, shape).double()


@pytest.mark.parametrize("flip_kernel", [False, True])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize(("weight_shape", "places", "options"), CASES, ids=range(len(CASES)))
def test_the_matrix_is_the_convolution(
    weight_shape: tuple[int, ...],
    places: tuple[int, ...],
    options: dict[str, Any],
    padding_mode: str,
    flip_kernel: bool,
) -> None:
    spatial, groups = len(places), options.get("groups", 1)
    weight, x = integers(*weight_shape), integers(weight_shape[1] * groups, *places)
    how = {**options, "padding_mode": padding_mode, "flip_kernel": flip_kernel}
    matrix = convolution_matrix(weight, places, **how)
    expected = CONV[spatial](x, weight, **how)
    assert matrix.layout == torch.sparse_coo
    assert matrix.is_coalesced()
    assert matrix.shape == (expected.numel(), x.numel())
    assert torch.equal(matrix @ x.flatten(), expected.flatten())

    y = integers(*expected.shape)
    spelled = C.conv_options("conv", places, weight_shape[2:], **{**_DEFAULTS, **how}, algorithm="naive")
    gradient = ops.conv_backward_input(y.unsqueeze(0), weight, [1, *x.shape], *spelled)
    assert torch.equal(matrix.t() @ y.flatten(), gradient.flatten())


_DEFAULTS: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


@pytest.mark.parametrize(("weight_shape", "places", "options"), CASES, ids=range(len(CASES)))
def test_transposed_it_is_the_transposed_convolution(
    weight_shape: tuple[int, ...], places: tuple[int, ...], options: dict[str, Any]
) -> None:
    spatial = len(places)
    weight = integers(*weight_shape)
    out = CONV[spatial](integers(weight_shape[1] * options.get("groups", 1), *places), weight, **options).shape
    y = integers(*out)
    result = CONV_TRANSPOSE[spatial](y, weight, **options)
    matrix = convolution_matrix(weight, result.shape[1:], **options)
    assert torch.equal(matrix.t() @ y.flatten(), result.flatten())


def test_it_is_doubly_blocked_toeplitz() -> None:
    matrix = convolution_matrix(torch.tensor([[[1.0, 2.0, 3.0]]]), 5, padding=1).to_dense()
    assert matrix.tolist() == [[2, 3, 0, 0, 0], [1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]
    circulant = convolution_matrix(torch.tensor([[[1.0, 2.0, 3.0]]]), 3, padding=1, padding_mode="circular").to_dense()
    assert circulant.tolist() == [[2, 3, 1], [1, 2, 3], [3, 1, 2]]
    doubled = convolution_matrix(torch.tensor([[[1.0, 2.0, 3.0]]]), 2, padding=1, padding_mode="replicate").to_dense()
    assert doubled.tolist() == [[3, 3], [1, 5]]


def test_gradients_flow_to_the_weight() -> None:
    weight, x = integers(2, 2, 3, 3).requires_grad_(), integers(2, 6, 6)
    (through,) = torch.autograd.grad((convolution_matrix(weight, 6, padding=1) @ x.flatten()).square().sum(), weight)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).square().sum(), weight)
    assert torch.equal(through, expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_layouts_and_dtypes() -> None:
    weight, x = torch.randint(-3, 4, (2, 1, 3)).float(), torch.randint(-3, 4, (8,)).float()
    rows = convolution_matrix(weight, 8, layout=torch.sparse_csr)
    assert rows.layout == torch.sparse_csr
    assert rows.dtype == torch.float32
    assert torch.equal(rows @ x, F.conv1d(x.view(1, 8), weight).flatten())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.ones(2, 2), 4), {}, ValueError, "weight must have 3 to 5 dimensions"),
        (([[1.0]], 4), {}, TypeError, "weight must be a Tensor"),
        ((torch.ones(1, 1, 5), 4), {}, RuntimeError, "Kernel size can't be greater"),
        ((torch.ones(1, 1, 3), (4, 4)), {}, RuntimeError, "input_size must be"),
        ((torch.ones(1, 1, 3), 4), {"padding": 4, "padding_mode": "reflect"}, RuntimeError, "adding"),
        ((torch.ones(3, 1, 3), 4), {"groups": 2}, RuntimeError, "groups"),
        ((torch.ones(1, 1, 3), 4), {"layout": torch.strided}, ValueError, "layout must be"),
    ],
)
def test_errors(arguments: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convolution_matrix(*arguments, **options)
