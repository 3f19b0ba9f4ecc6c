"""The tools of the tests can fail: each comparison, sentinel and poison sees what it is there to see."""

from __future__ import annotations

import math

import pytest
import torch

from convext import _C, ops
from tests import calls, cases, numerics

ONE_BY_ONE = ([1, 1], [0] * 4, [1, 1], 1, "zeros", False, "naive")


def test_bits_tell_zeros_and_nans_apart() -> None:
    numerics.assert_same_bits(torch.tensor([math.nan, 0.0]), torch.tensor([math.nan, 0.0]))
    with pytest.raises(AssertionError, match="1 of 2 elements differ"):
        numerics.assert_same_bits(torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.0]))
    with pytest.raises(AssertionError, match="shape"):
        numerics.assert_same_bits(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(AssertionError, match="float64"):
        numerics.assert_same_bits(torch.zeros(2), torch.zeros(2).double())


def test_values_that_differ_are_reported() -> None:
    numerics.assert_equal(torch.tensor([math.nan, -0.0]), torch.tensor([math.nan, 0.0]))
    for wrong in (math.nan, 2.0, math.inf):
        with pytest.raises(AssertionError, match=r"the first at \(0,\)"):
            numerics.assert_equal(torch.tensor([wrong]), torch.tensor([1.0]))


def test_bounds_are_kept() -> None:
    expected, bound = torch.ones(3), torch.full((3,), 0.25)
    numerics.assert_within(torch.tensor([1.25, 0.75, 1.0]), expected, bound)
    for wrong in (1.2501, 0.7499, math.nan, math.inf):
        with pytest.raises(AssertionError, match=r"bound 0\.25"):
            numerics.assert_within(torch.tensor([1.0, wrong, 1.0]), expected, bound)


@pytest.mark.parametrize("problem", cases.CONV_CORE, ids=str)
def test_the_bound_notices_one_missing_product(problem: cases.ConvProblem) -> None:
    """A kernel that forgot one tap of the weight is outside the bound almost everywhere."""
    operands = calls.conv_operands(problem, numerics.normals())
    expected = calls.reference_conv(problem, operands)
    bound = calls.conv_bounds(problem, operands, expected, torch.float32)["forward"]
    operands.weight.view(operands.weight.shape[0], -1)[:, operands.weight[0].numel() // 2] = 0
    wrong = calls.run_conv(problem, "forward", operands, "naive")
    with pytest.raises(AssertionError, match="elements differ"):
        numerics.assert_within(wrong, expected["forward"], bound)


@pytest.mark.parametrize("dtype", numerics.FLOATS + numerics.INTEGERS, ids=numerics.name_of)
def test_a_write_beside_a_tensor_or_into_it_is_noticed(dtype: torch.dtype) -> None:
    tensor = torch.ones(2, 3, dtype=dtype)
    with numerics.guarded(tensor) as (view,):
        assert torch.equal(view, tensor)
    for offset in (-1, 0, 5, 6):
        with pytest.raises(AssertionError, match="written to"), numerics.guarded(tensor) as (view,):
            view.as_strided((1,), (1,), view.storage_offset() + offset).fill_(2)


def test_a_read_beside_a_tensor_shows() -> None:
    with numerics.guarded(torch.ones(1, 1, 2, 2)) as (view,):
        beyond = view.as_strided((1, 1, 2, 3), (6, 6, 3, 1), view.storage_offset())
        assert ops.conv_forward(beyond, torch.ones(1, 1, 1, 1), None, *ONE_BY_ONE).isnan().any()


def test_guarded_keeps_the_layout() -> None:
    x = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    with numerics.guarded(x, None) as (view, nothing):
        assert view.stride() == x.stride()
        assert nothing is None


def test_settings_are_restored() -> None:
    before = torch.get_num_threads(), _C.active_isa()
    with numerics.threads(3), numerics.instruction_set("baseline"):
        assert (torch.get_num_threads(), _C.active_isa()) == (3, "baseline")
    assert (torch.get_num_threads(), _C.active_isa()) == before


def test_the_tables_of_problems_have_no_name_twice() -> None:
    for table in (cases.CONVOLUTIONS, cases.MAX_POOLS, cases.AVERAGE_POOLS):
        names = [str(p) for p in table]
        assert len(set(names)) == len(names)
