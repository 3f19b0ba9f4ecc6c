"""Tensors of more than 2^31 elements: CONVEXT_TEST_LARGE=1 runs these, they take 14 GiB and half a minute."""

from __future__ import annotations

import os

import pytest
import torch

import convext
from convext import ops
from tests import calls

pytestmark = pytest.mark.skipif(
    os.environ.get("CONVEXT_TEST_LARGE") != "1", reason="takes 14 GiB: set CONVEXT_TEST_LARGE=1"
)

HALF = 2**31
MARKS = {7: 3.0, HALF - 1: 2.0, HALF + 1: 5.0, HALF + 39: 4.0}


@pytest.fixture(scope="module")
def line() -> torch.Tensor:
    """(1, 1, 2^31 + 40) float16, zero but for MARKS."""
    x = torch.zeros(1, 1, HALF + 40, dtype=torch.float16)
    for at, value in MARKS.items():
        x[0, 0, at] = value
    return x


@pytest.mark.parametrize("algorithm", calls.OTHER_CONV_ALGORITHMS)
def test_convolution(line: torch.Tensor, algorithm: str) -> None:
    y = convext.functional.conv1d(line, torch.tensor([[[1.0, 2.0]]]).half(), algorithm=algorithm)[0, 0]
    assert y.shape == (HALF + 39,)
    assert y.count_nonzero() == 2 * len(MARKS) - 1
    for at, value in MARKS.items():
        assert y[at - 1] == 2 * value
        if at < HALF + 39:
            assert y[at] == value


@pytest.mark.parametrize("algorithm", calls.OTHER_POOL_ALGORITHMS)
def test_max_pooling(line: torch.Tensor, algorithm: str) -> None:
    window = ([2], [2], [0, 0], [1], False)
    y, places = ops.max_pool(line, *window, True, algorithm)
    assert y.count_nonzero() == len(MARKS)
    for at, value in MARKS.items():
        assert y[0, 0, at // 2] == value
    dx = ops.max_pool_backward(torch.ones_like(y), places, line.shape, *window, algorithm)
    assert all(dx[0, 0, at] == 1 for at in MARKS)
    assert dx.count_nonzero() == y.numel()
