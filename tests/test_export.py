"""Programs without convext's Python: torch.export saved and loaded, AOTInductor's packages, the operators as a library;
recomputed activations; autocast on a GPU, which is not there, told by stand-ins."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import convext
from convext.functional import convolution, pooling
from examples import native_library
from tests import numerics


def network() -> nn.Module:
    """torch's layers, converted, holding small integers: whatever is fused around them, results are exact."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.AvgPool2d(2),
        nn.ConvTranspose2d(4, 2, 2, 2), nn.AdaptiveMaxPool2d(2),
    )  # fmt: skip
    assert not convext.convert(net).left
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(numerics.integers(seed=i)(*p.shape))
    return net.eval()


# torch.export and AOTInductor ----------------------------------------------------------------------------------------


def test_an_exported_program_is_saved_and_loaded() -> None:
    net, x = network(), numerics.integers()(2, 2, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for n in (1, 2, 5):
        x = numerics.integers()(n, 2, 32, 32)
        numerics.assert_same_bits(loaded(x).detach(), net(x).detach())


LOADED = """
import sys, torch
library, package, numbers = sys.argv[1:]
torch.ops.load_library(library)
assert "convext" not in sys.modules
run = torch._inductor.aoti_load_package(package)
for x, y in torch.load(numbers):
    assert torch.equal(run(x), y)
print("equal")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network compiled ahead of time, and inputs with the outputs that it should have."""
    folder = tmp_path_factory.mktemp("package")
    net, make = network(), numerics.integers()
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        program = torch.export.export(net, (make(2, 2, 32, 32),), dynamic_shapes=({0: batch},))
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "net.pt2"))
        inputs = [make(n, 2, 32, 32) for n in (1, 3)]
        torch.save([(x, net(x)) for x in inputs], folder / "numbers.pt")
    return folder / "net.pt2", folder / "numbers.pt"


@pytest.mark.slow
def test_aot_inductor(package: tuple[Path, Path]) -> None:
    run = torch._inductor.aoti_load_package(str(package[0]))
    for x, expected in torch.load(package[1]):
        numerics.assert_equal(run(x), expected)


@pytest.fixture(scope="module")
def library_without_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not native_library.objects():
        pytest.skip("needs the objects of a build: make build")
    library = str(tmp_path_factory.mktemp("library") / "libconvext.so")
    assert native_library.main(library) == []
    return library


def test_the_operators_are_a_library_without_python(library_without_python: str) -> None:
    command = f"import torch; torch.ops.load_library({library_without_python!r}); print(torch.ops.convext.conv_forward)"
    found = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout
    assert "conv_forward" in found


@pytest.mark.slow
@pytest.mark.parametrize("python", [True, False], ids=["extension", "library without Python"])
def test_aot_inductor_in_a_process_without_convext(
    package: tuple[Path, Path], python: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The shared library with the operators is all that it needs."""
    library = convext._C.__file__ if python else request.getfixturevalue("library_without_python")
    command = [sys.executable, "-c", LOADED, library, *map(str, package)]
    assert "equal" in subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout


# Activation checkpointing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_activations_change_no_bit(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    net, x = network(), numerics.normals()(2, 2, 32, 32)
    found = []
    for recompute in (False, True):
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        output = checkpoint(net, leaf, use_reentrant=use_reentrant) if recompute else net(leaf)
        output.square().sum().backward()
        found.append([output.detach(), leaf.grad, *(p.grad for p in net.parameters())])
    for expected, actual in zip(*found, strict=True):
        assert expected is not None
        numerics.assert_same_bits(actual, expected)


# Autocast on a GPU ---------------------------------------------------------------------------------------------------


@contextmanager
def autocast_on_cuda(dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast("cuda") refuses to begin where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@dataclass
class OnGpu:
    """As much of a tensor on a GPU as casting looks at."""

    dtype: torch.dtype
    device: torch.device = torch.device("cuda")  # noqa: RUF009

    def to(self, dtype: torch.dtype) -> OnGpu:
        return OnGpu(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=numerics.name_of)
def test_autocast_on_cuda(dtype: torch.dtype) -> None:
    """Convolutions take their operands in the lower precision, float64 as it is; pooling takes what it is given."""
    given: list[Any] = [OnGpu(torch.float32), OnGpu(dtype), None]
    with autocast_on_cuda(dtype):
        assert [t and t.dtype for t in convolution._lower_precision(*given)] == [dtype, dtype, None]
        assert convolution._lower_precision(*[OnGpu(torch.float64)] * 2)[0].dtype == torch.float64
        half: Any = OnGpu(dtype)
        assert pooling._full_precision_3d(half, 3) is half
        cpu = torch.zeros(1, dtype=torch.float32)
        assert convolution._lower_precision(cpu)[0] is cpu
    assert convolution._lower_precision(*given) == tuple(given)


def test_export_needs_no_gradient_of_what_is_frozen() -> None:
    """A model under no_grad, and one whose parameters want gradients, become the same operators."""

    def operators(net: nn.Module) -> list[str]:
        program = torch.export.export(net, (torch.zeros(1, 2, 32, 32),))
        return [str(node.target) for node in program.graph.nodes if "convext" in str(node.target)]

    expected = ["conv_forward", "max_pool", "conv_forward", "avg_pool", "conv_backward_input", "max_pool"]
    for trained in (True, False):
        net = network().requires_grad_(trained)
        assert operators(net) == [f"convext.{name}.default" for name in expected]
