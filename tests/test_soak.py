"""The short form of the soak (tests/soak.py): some thousand calls from several threads, the same bits, flat memory."""

import sys

import pytest

from tests.soak import Outcome, soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads glibc's and Linux' accounts of memory")


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return soak(calls=2000, kinds=80)


def test_concurrent_callers_get_the_bits_of_a_lone_one(outcome: Outcome) -> None:
    assert outcome.different == ()


def test_memory_is_flat(outcome: Outcome) -> None:
    assert outcome.before.packed > 0
    assert outcome.grown("packed") == 0
    assert outcome.grown("arena_used") == 0
    assert outcome.grown("arena_held") <= 32 << 20, outcome  # a slab
    assert outcome.grown("handed_out") < 100 * outcome.calls, outcome
    assert outcome.grown("blocks") < outcome.calls, outcome
    assert outcome.grown("resident") < 16 << 20, outcome
