"""Every example runs, and what it claims holds: exactly where it says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import convext
from examples import (
    channels,
    convolution,
    edges,
    export,
    learned_kernel,
    matrix,
    own_algorithm,
    padding_and_stride,
    pictures,
    pooling,
    receptive_fields,
    sharded_channels,
)

for package in ("sklearn", "PIL"):
    pytest.importorskip(package, reason=f"the examples need {package}")


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with pictures.one_thread():
        yield


def test_pictures_are_whole_numbers() -> None:
    for name in ("china", "flower"):
        image = pictures.photograph(name)
        assert image.shape == (1, 3, 427, 640)
        assert torch.equal(image, image.round())
        assert image.min() == 0
        assert image.max() == 255
    images, labels = pictures.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert torch.equal(images, images.round())
    assert sorted(labels.unique().tolist()) == list(range(10))


def test_a_missing_package_gives_one_sentence() -> None:
    with pytest.raises(SystemExit, match="The examples need no_such_package: pip install no_such_package"):
        pictures.require("no_such_package")


def test_saved_pictures(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.image")
    path = tmp_path / "new" / "two.png"
    pictures.save({"colour": pictures.photograph()[0], "grey": torch.zeros(427, 640)}, path)
    height, width, _ = plt.imread(path).shape
    assert width > 2 * height > 200


def test_edges() -> None:
    found = edges.main()
    assert torch.equal(found.across, found.brighter), "a constant has no edges"
    assert torch.equal(found.across, found.separable), "Sobel is an outer product"
    turned, _ = edges.edges(found.image.transpose(2, 3))
    assert torch.equal(turned.transpose(2, 3), found.down), "down is across, of the picture turned"
    top, left = 200, 300
    window = found.image[0, 0, top : top + 3, left : left + 3]
    assert (window * edges.SOBEL[0, 0]).sum() == found.across[0, 0, top, left]
    assert 0.1 < found.share < 0.2


def test_learned_kernel() -> None:
    results = learned_kernel.main()
    assert len(results) == 3
    for found in results.values():
        assert torch.equal(found.kernel.round(), edges.SOBEL)
        assert (found.kernel - edges.SOBEL).abs().max() < 1e-6
        assert all(after <= before for before, after in zip(found.losses, found.losses[1:], strict=False))
    raw, centred, sharp = results.values()
    assert raw.condition > centred.condition > sharp.condition
    assert raw.steps > centred.steps > sharp.steps


@pytest.mark.parametrize("name", ["as it is", "blur taken away"])
def test_the_valley_decides_how_fast_a_kernel_is_learned(name: str) -> None:
    """In the end each step shrinks the loss by (1 - smallest / largest curvature)^2."""
    found = learned_kernel.main()[name]
    last = found.losses[-1] / found.losses[-2]
    assert math.sqrt(last) == pytest.approx(1 - 1 / found.condition, abs=0.1 / found.condition)


def test_padding_and_stride() -> None:
    found = padding_and_stride.main()
    assert list(found.sizes.values()) == [(413, 626), (427, 640), (427, 640), (207, 313), (214, 320), (427, 640)]
    assert torch.equal(found.whole[..., ::2, ::2], found.strided)
    assert found.rims["zeros"] < 0.6 * found.rim, "zeros are black"
    for mode, value in found.rims.items():
        if mode != "zeros":
            assert value == pytest.approx(found.rim, rel=0.02)
    assert found.stripes.unique().tolist() == [0.0]
    assert found.blurred.unique().tolist() == [127.5]


def test_channels() -> None:
    found = channels.main()
    assert torch.equal(found.summed, sum(found.planes))
    assert torch.equal(found.colours[0, 0], found.image[0].sum(0)), "the first output channel is brightness"
    torch.testing.assert_close(found.back, found.image, rtol=0, atol=1e-12)
    assert torch.equal(found.twice, found.once)
    assert torch.equal(found.separable, found.full)
    assert found.parameters == {"full 3x3": 589824, "depthwise 3x3, then 1x1": 67840}


def test_pooling() -> None:
    found = pooling.main()
    changes, unchanged = found.changes, found.unchanged
    for kind in ("maximum", "average"):
        assert changes["the map itself"] > changes[f"{kind} over 2x2"] > changes[f"{kind} over 4x4"]
        assert changes[f"{kind} of all"] < 1e-15
    assert unchanged["maximum over 4x4"] > unchanged["maximum over 2x2"] > unchanged["the map itself"]
    assert unchanged["maximum over 2x2"] > unchanged["average over 2x2"]
    assert found.two_pixels
    assert torch.equal(found.largest, found.largest_moved)
    assert (found.largest[:, 0] > found.largest[:, 1]).any()
    assert (found.largest[:, 0] < found.largest[:, 1]).any()


def test_convolution() -> None:
    found = convolution.main()
    arrow = convolution.ARROW[0, 0]
    assert torch.equal(found.impulse["convolution"], arrow)
    assert torch.equal(found.impulse["cross-correlation"], arrow.flip(0, 1))
    assert torch.equal(found.grouped, found.multiplied)
    assert found.exchanged
    assert not found.exchanged_correlation
    assert found.polynomial.tolist() == [4, 13, 22, 15]
    assert found.found == found.taken


def test_convolution_is_scipys() -> None:
    signal = pytest.importorskip("scipy.signal")
    image = pictures.grey(pictures.photograph("china"))[:, :, :40, :50]
    ours = convolution.conv2d(image, convolution.ARROW, flip_kernel=True)[0, 0]
    theirs = signal.convolve2d(image[0, 0].numpy(), convolution.ARROW[0, 0].numpy(), mode="valid")
    assert torch.equal(ours, torch.tensor(theirs))


def test_matrix() -> None:
    found = matrix.main()
    assert found.matrix.shape == (36, 64)
    assert ((found.matrix != 0).sum(1) == 9).all(), "nine numbers in each row"
    assert torch.equal(found.by_matrix, found.by_convolution.flatten())
    assert torch.equal(found.back_by_matrix, found.back_by_convolution.flatten())
    assert torch.equal(found.kernel, matrix.SMOOTH[0, 0])
    assert found.ranks == {"smooth": 7 * 7, "mild": 8 * 8}
    torch.testing.assert_close(found.eigenvalues, found.spectrum, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.restored, found.digit, rtol=0, atol=1e-12)


def test_receptive_fields() -> None:
    found = receptive_fields.main()
    assert found.sizes == {
        "one 7x7": (7, 1),
        "three 3x3": (7, 1),
        "three 3x3, strides 2": (15, 8),
        "three 3x3, dilations 1 2 4": (15, 1),
        "3x3, pool 2x2, twice": (10, 4),
    }
    assert found.seen == {name: size for name, (size, _) in found.sizes.items()}
    for depth, deviation in found.deviations.items():
        assert deviation == pytest.approx(math.sqrt(2 * depth / 3), rel=1e-9)


def test_export() -> None:
    found = export.main()
    assert found.operators == [f"convext.{name}.default" for name in ("conv_forward", "max_pool") * 2]
    assert found.equal
    if found.onnx_equal is not None:
        assert found.onnx_equal
        assert found.onnx["Conv"] == 2
        assert found.onnx["MaxPool"] == 1


def test_an_example_starts_its_own_two_processes() -> None:
    """What they find is tests/test_distributed.py's."""
    found = sharded_channels.main()
    assert found.equal
    assert found.kept == (4, 3, 3, 3)


@pytest.mark.slow
@pytest.mark.skipif(not own_algorithm.objects(), reason="needs the objects of a build: make build")
def test_own_algorithm() -> None:
    """Compiles two files and links; the table, a part of the tests and the benchmark have the new algorithm."""
    before = {path: path.stat().st_mtime for path in (own_algorithm.ROOT / "csrc").rglob("*")}
    found = own_algorithm.main()
    assert set(found.compiled) == {own_algorithm.TABLE, own_algorithm.KERNEL}
    assert found.algorithms == [*convext.algorithms("conv2d")[:-1], own_algorithm.NAME, "naive"]
    assert f"forward: {own_algorithm.NAME} (named)" in found.explanation
    assert " passed" in found.tests
    assert found.milliseconds[own_algorithm.NAME] < found.milliseconds["naive"]
    assert before == {path: path.stat().st_mtime for path in (own_algorithm.ROOT / "csrc").rglob("*")}
