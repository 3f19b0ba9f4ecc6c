"""Settings of the whole suite, and the fixtures that more than one file uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests import numerics

# Random geometry is drawn the same way in every run; HYPOTHESIS_PROFILE=explore draws anew, and more.
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


def pytest_configure(config: pytest.Config) -> None:
    """One thread per worker process: tests that are about threads ask for more themselves."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without a device the seven thousand tests of one are not even collected, unless they are asked for."""
    wanted = "CONVEXT_TEST_DEVICE" in os.environ or torch.cuda.is_available() or "gpu" in str(config.args)
    wanted = wanted or "gpu" in config.getoption("-m")
    return True if collection_path.name == "test_gpu.py" and not wanted else None


@pytest.fixture(params=numerics.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that the machine has, in turn the active one."""
    with numerics.instruction_set(request.param):
        yield request.param


@pytest.fixture(params=numerics.FLOATS, ids=numerics.name_of)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each floating type that has kernels."""
    return request.param
