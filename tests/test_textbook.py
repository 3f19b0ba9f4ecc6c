"""Worked examples of the textbooks, as executable documentation.

Most are those of Dive into Deep Learning, chapter 7 (https://d2l.ai): X is 0..8 in a 3x3 square, K is 0..3 in a 2x2.
Each runs through every algorithm.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import convext
from convext import functional as F
from tests import calls

X = torch.arange(9.0).reshape(3, 3)
K = torch.arange(4.0).reshape(2, 2)

algorithms = pytest.mark.parametrize("algorithm", ["auto", *calls.CONV_ALGORITHMS])
pool_algorithms = pytest.mark.parametrize("algorithm", ["auto", *calls.POOL_ALGORITHMS])


def skip_if_refused(op: str, *args: object, algorithm: str, **kwargs: object) -> None:
    """Skips with the algorithm's own words where it cannot do the call. Numbers are those of the book: not for
    winograd with 2x2 kernels, whose points are no integers (tests/test_winograd.py)."""
    if algorithm == "winograd" and isinstance(args[1], Tensor) and args[1].shape[-1] == 2:
        pytest.skip("winograd rounds")
    if algorithm != "auto":
        calls.skip_if_refused(convext.explain(op, *args, **kwargs), algorithm)


def correlate(image: Tensor, kernel: Tensor, algorithm: str, **rest: object) -> Tensor:
    """Cross-correlation of a matrix with a matrix."""
    skip_if_refused("conv2d", image[None, None], kernel[None, None], algorithm=algorithm, **rest)
    return F.conv2d(image[None, None], kernel[None, None], algorithm=algorithm, **rest)[0, 0]


# Cross-correlation ---------------------------------------------------------------------------------------------------


@algorithms
def test_cross_correlation(algorithm: str) -> None:
    assert correlate(X, K, algorithm).tolist() == [[19, 25], [37, 43]]


@algorithms
def test_cross_correlation_by_a_layer(algorithm: str) -> None:
    layer = convext.Conv2d(1, 1, 2, algorithm=algorithm)
    with torch.no_grad():
        layer.weight.copy_(K)
        layer.bias.fill_(100)
    skip_if_refused("conv2d", X[None, None], layer.weight, algorithm=algorithm)
    assert layer(X[None]).tolist() == [[[119, 125], [137, 143]]]


@algorithms
def test_two_input_channels(algorithm: str) -> None:
    """One sum over the channels: X with K, and X + 1 with K + 1."""
    x, k = torch.stack([X, X + 1]), torch.stack([K, K + 1])
    skip_if_refused("conv2d", x, k[None], algorithm=algorithm)
    assert F.conv2d(x, k[None], algorithm=algorithm).tolist() == [[[56, 72], [104, 120]]]


@algorithms
def test_three_output_channels(algorithm: str) -> None:
    x, k = torch.stack([X, X + 1]), torch.stack([K, K + 1])
    weight = torch.stack([k, k + 1, k + 2])
    skip_if_refused("conv2d", x, weight, algorithm=algorithm)
    assert F.conv2d(x, weight, algorithm=algorithm).tolist() == [
        [[56, 72], [104, 120]],
        [[76, 100], [148, 172]],
        [[96, 128], [192, 224]],
    ]


@algorithms
def test_one_by_one_convolution_is_a_matrix_product_over_channels(algorithm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-9, 9, (3, 3, 3), generator=generator).float()
    weight = torch.randint(-9, 9, (2, 3, 1, 1), generator=generator).float()
    skip_if_refused("conv2d", x, weight, algorithm=algorithm)
    product = weight.view(2, 3) @ x.view(3, 9)
    assert torch.equal(F.conv2d(x, weight, algorithm=algorithm), product.view(2, 3, 3))


@algorithms
def test_true_convolution_is_cross_correlation_with_both_axes_flipped(algorithm: str) -> None:
    convolved = correlate(X, K, algorithm, flip_kernel=True)
    assert torch.equal(convolved, correlate(X, K.flip(0, 1), algorithm))
    # by the definition: y[i, j] = sum over a, b of X[i + 1 - a, j + 1 - b] K[a, b]
    expected = [
        [sum(X[i + 1 - a, j + 1 - b] * K[a, b] for a in range(2) for b in range(2)) for j in range(2)] for i in range(2)
    ]
    assert convolved.tolist() == expected
    layer = convext.Conv2d(1, 1, 2, bias=False, flip_kernel=True, algorithm=algorithm)
    with torch.no_grad():
        layer.weight.copy_(K)
    assert torch.equal(layer(X[None, None])[0, 0], convolved)


@algorithms
def test_true_convolution_multiplies_polynomials(algorithm: str) -> None:
    """(1 + 2 x + 3 x^2)(4 + 5 x) = 4 + 13 x + 22 x^2 + 15 x^3."""
    a, b = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[4.0, 5.0]]])
    skip_if_refused("conv1d", a, b, padding=1, flip_kernel=True, algorithm=algorithm)
    product = F.conv1d(a, b, padding=1, flip_kernel=True, algorithm=algorithm)
    assert product.flatten().tolist() == [4, 13, 22, 15]


# Edges, and learning a kernel ----------------------------------------------------------------------------------------


def banded_image() -> Tensor:
    """6x8, white, with a dark band of four columns."""
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    return image


EDGE = torch.tensor([[1.0, -1.0]])


@algorithms
def test_an_edge_detector(algorithm: str) -> None:
    """1 from white to dark, -1 from dark to white, 0 elsewhere; on the transpose nothing."""
    assert correlate(banded_image(), EDGE, algorithm).tolist() == [[0, 1, 0, 0, 0, -1, 0]] * 6
    assert correlate(banded_image().T, EDGE, algorithm).tolist() == [[0] * 5] * 8


@algorithms
def test_learning_the_edge_detector(algorithm: str) -> None:
    """Gradient descent on the squared error of the image and its edges tends to [1, -1]."""
    torch.manual_seed(0)
    image, edges = banded_image()[None, None], correlate(banded_image(), EDGE, algorithm)[None, None]
    layer = convext.Conv2d(1, 1, kernel_size=(1, 2), bias=False, algorithm=algorithm)
    start = (layer(image) - edges).square().sum().item()
    for _ in range(200):
        loss = (layer(image) - edges).square().sum()
        layer.zero_grad()
        loss.backward()
        with torch.no_grad():
            layer.weight -= 0.02 * layer.weight.grad
    # The loss is |A (k - [1, -1])|^2 with A^T A = 6 [[3, 2], [2, 3]], of eigenvalues 6 and 30: a step of rate 0.02
    # shrinks the error by 1 - 2 * 0.02 * 6 = 0.76 or more, and its rounding adds less than 4 eps.
    distance = (layer.weight.flatten() - torch.tensor([1.0, -1.0])).norm().item()
    rounding = 4 * torch.finfo(torch.float32).eps / (1 - 0.76)
    assert distance <= 0.76**200 * math.sqrt(start / 6) + rounding


# Padding and output sizes --------------------------------------------------------------------------------------------


@algorithms
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "expected"),
    [
        ((3, 3), 1, 1, (8, 8)),
        ((5, 3), 1, (2, 1), (8, 8)),
        ((3, 3), 1, "same", (8, 8)),
        ((3, 3), 2, "same", (4, 4)),
        ((3, 3), 2, "same_lower", (4, 4)),
        ((3, 3), 2, 1, (4, 4)),
        ((3, 5), (3, 4), 0, (2, 1)),
        ((3, 5), (3, 4), "valid", (2, 1)),
        ((3, 5), (3, 4), (0, 1), (2, 2)),
        ((2, 2), 1, ((1, 0), (0, 1)), (8, 8)),
    ],
)
def test_an_8x8_input(
    algorithm: str, kernel: tuple[int, int], stride: object, padding: object, expected: tuple[int, int]
) -> None:
    layer = convext.Conv2d(1, 1, kernel, stride=stride, padding=padding, algorithm=algorithm)
    x = torch.ones(1, 1, 8, 8)
    skip_if_refused("conv2d", x, layer.weight, stride=stride, padding=padding, algorithm=algorithm)
    assert layer(x).shape == (1, 1, *expected)


@algorithms
def test_output_sizes_follow_the_formula(algorithm: str) -> None:
    """floor((n - k + p + s) / s), p being the padding of both sides together."""
    for n in range(1, 9):
        for k in range(1, 6):
            for before, after in ((0, 0), (1, 1), (0, 2), (3, 1)):
                p = before + after
                if n + p < k:
                    continue
                for s in (1, 2, 3):
                    x, w = torch.ones(1, 1, n), torch.ones(1, 1, k)
                    padding = ((before, after),)
                    skip_if_refused("conv1d", x, w, stride=s, padding=padding, algorithm=algorithm)
                    out = F.conv1d(x, w, stride=s, padding=padding, algorithm=algorithm)
                    assert out.shape[-1] == (n - k + p + s) // s, (n, k, p, s)


MIRRORED = [[5, 4, 5, 6, 5], [2, 1, 2, 3, 2], [5, 4, 5, 6, 5], [8, 7, 8, 9, 8], [5, 4, 5, 6, 5]]
PADDED = {
    "zeros": [[0, 0, 0, 0, 0], [0, 1, 2, 3, 0], [0, 4, 5, 6, 0], [0, 7, 8, 9, 0], [0, 0, 0, 0, 0]],
    "reflect": MIRRORED,
    "replicate": [[1, 1, 2, 3, 3], [1, 1, 2, 3, 3], [4, 4, 5, 6, 6], [7, 7, 8, 9, 9], [7, 7, 8, 9, 9]],
    "circular": [[9, 7, 8, 9, 7], [3, 1, 2, 3, 1], [6, 4, 5, 6, 4], [9, 7, 8, 9, 7], [3, 1, 2, 3, 1]],
    "symmetric": [[1, 1, 2, 3, 3], [1, 1, 2, 3, 3], [4, 4, 5, 6, 6], [7, 7, 8, 9, 9], [7, 7, 8, 9, 9]],
}


@algorithms
@pytest.mark.parametrize("mode", PADDED)
def test_padding_modes_of_1_to_9(algorithm: str, mode: str) -> None:
    """A kernel of a single one shows the padded input itself."""
    image = torch.arange(1.0, 10).reshape(3, 3)
    one = torch.ones(1, 1)
    assert correlate(image, one, algorithm, padding=1, padding_mode=mode).tolist() == PADDED[mode]


@algorithms
def test_symmetric_and_replicate_differ_from_two_places_on(algorithm: str) -> None:
    line, one = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 1)
    for mode, expected in (
        ("symmetric", [2, 1, 1, 2, 3, 3, 2]),
        ("replicate", [1, 1, 1, 2, 3, 3, 3]),
        ("reflect", [3, 2, 1, 2, 3, 2, 1]),
        ("circular", [2, 3, 1, 2, 3, 1, 2]),
    ):
        shown = correlate(line, one, algorithm, padding=(0, 2), padding_mode=mode)
        assert shown.flatten().tolist() == expected, mode


# Convolution as a matrix ---------------------------------------------------------------------------------------------


def kernel_3x3() -> Tensor:
    return torch.tensor([[1.0, 4.0, 1.0], [1.0, 4.0, 3.0], [3.0, 3.0, 1.0]])


def matrix_of(algorithm: str) -> Tensor:
    """C, 4x16, of the 3x3 kernel on a 4x4 input: column i is what the i-th unit input gives."""
    columns = [correlate(unit.view(4, 4), kernel_3x3(), algorithm).flatten() for unit in torch.eye(16)]
    return torch.stack(columns, 1)


@algorithms
def test_convolution_as_a_matrix(algorithm: str) -> None:
    c = matrix_of(algorithm)
    k = kernel_3x3()
    row = torch.zeros(4, 4)
    row[:3, :3] = k  # each row of C is the kernel laid over the input, shifted
    assert c.shape == (4, 16)
    assert torch.equal(c, torch.stack([row.roll((i, j), (0, 1)).flatten() for i in (0, 1) for j in (0, 1)]))
    x = torch.arange(16.0).reshape(4, 4)
    assert torch.equal(c @ x.flatten(), correlate(x, k, algorithm).flatten())


@algorithms
def test_its_transpose_is_the_gradient_and_the_transposed_convolution(algorithm: str) -> None:
    c = matrix_of(algorithm)
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    y = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    F.conv2d(x, kernel_3x3()[None, None], algorithm=algorithm).backward(y[None, None])
    assert torch.equal(x.grad.flatten(), c.T @ y.flatten())
    transposed = F.conv_transpose2d(y[None, None], kernel_3x3()[None, None], algorithm=algorithm)
    assert torch.equal(transposed.flatten(), c.T @ y.flatten())


@algorithms
@pytest.mark.parametrize(
    ("stride", "padding", "expected"),
    [
        (1, 0, [[0, 0, 1], [0, 4, 6], [4, 12, 9]]),
        (2, 0, [[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]]),
        (1, 1, [[4]]),
    ],
)
def test_transposed_convolution(algorithm: str, stride: int, padding: int, expected: list[list[int]]) -> None:
    x = K[None, None]
    skip_if_refused("conv_transpose2d", x, x, stride=stride, padding=padding, algorithm=algorithm)
    out = F.conv_transpose2d(x, x, stride=stride, padding=padding, algorithm=algorithm)
    assert out[0, 0].tolist() == expected


# Pooling -------------------------------------------------------------------------------------------------------------


@pool_algorithms
def test_pooling_0_to_8(algorithm: str) -> None:
    x = X[None, None]
    skip_if_refused("max_pool2d", x, 2, stride=1, algorithm=algorithm)
    assert F.max_pool2d(x, 2, stride=1, algorithm=algorithm)[0, 0].tolist() == [[4, 5], [7, 8]]
    assert F.avg_pool2d(x, 2, stride=1, algorithm=algorithm)[0, 0].tolist() == [[2, 3], [5, 6]]


@pool_algorithms
def test_max_pooling_0_to_15_by_channel(algorithm: str) -> None:
    """Window 3, padding 1, stride 2; each channel by itself."""
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    x = torch.cat([x, x + 1], 1)
    layer = convext.MaxPool2d(3, padding=1, stride=2, algorithm=algorithm)
    skip_if_refused("max_pool2d", x, 3, padding=1, stride=2, algorithm=algorithm)
    assert layer(x)[0].tolist() == [[[5, 7], [13, 15]], [[6, 8], [14, 16]]]


@pool_algorithms
def test_max_pooling_sends_the_gradient_to_the_winner(algorithm: str) -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4).requires_grad_()
    skip_if_refused("max_pool2d", x, 2, algorithm=algorithm)
    F.max_pool2d(x, 2, algorithm=algorithm).backward(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert x.grad[0, 0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [0, 3, 0, 4]]


@pool_algorithms
def test_average_pooling_spreads_the_gradient(algorithm: str) -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    skip_if_refused("avg_pool2d", x, 2, algorithm=algorithm)
    F.avg_pool2d(x, 2, algorithm=algorithm).backward(torch.tensor([[[[4.0, 8.0], [12.0, 16.0]]]]))
    assert x.grad[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


@algorithms
def test_average_pooling_is_a_depthwise_convolution(algorithm: str) -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    weight = torch.full((2, 1, 2, 2), 0.25)
    skip_if_refused("conv2d", x, weight, stride=2, groups=2, algorithm=algorithm)
    averaged = F.avg_pool2d(x, 2, algorithm="auto")
    assert torch.equal(F.conv2d(x, weight, stride=2, groups=2, algorithm=algorithm), averaged)
