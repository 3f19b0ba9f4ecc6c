"""Exported models, run by ONNX Runtime: convext's numbers, exact on integers. All layers are written as one model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convext
import convext.functional as C
from convext import _C
from tests import numerics, peer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

SIDES = ((2, 0), (1, 2), (0, 1))


def _convolutions() -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for d in (1, 2, 3):
        conv, transposed = (getattr(convext, f"{kind}{d}d") for kind in ("Conv", "ConvTranspose"))
        found |= {
            f"conv{d}d": conv(2, 4, 3),
            f"conv{d}d options": conv(2, 4, (3, 2, 2)[:d], (2, 1, 2)[:d], (1, 0, 1)[:d], (1, 2, 1)[:d], 2, bias=False),
            f"conv{d}d same": conv(2, 3, 3, 2, "same"),
            f"conv{d}d same_lower flipped": conv(2, 2, 4, padding="same_lower", flip_kernel=True, groups=2),
            f"conv{d}d per side": conv(2, 2, 3, padding=SIDES[:d], algorithm="im2col"),
            f"conv_transpose{d}d": transposed(2, 3, 3),
            f"conv_transpose{d}d options": transposed(2, 4, 3, 2, 1, 1, groups=2, dilation=(1, 2, 1)[:d], bias=False),
            f"conv_transpose{d}d flipped": transposed(2, 3, 3, 2, SIDES[:d], flip_kernel=True),
            f"conv_transpose{d}d same": transposed(2, 3, 3, 2, "same"),
            f"conv_transpose{d}d output_padding over stride": transposed(2, 1, 3, 1, 0, 1, dilation=2),
        }
        for mode in ("reflect", "replicate", "circular", "symmetric"):
            found[f"conv{d}d {mode}"] = conv(2, 3, 3, padding=SIDES[:d], padding_mode=mode, flip_kernel=d == 2)
    found["lazy"] = convext.LazyConv2d(3, 3)
    return found


class WithIndices(nn.Module):
    """Max pooling, and its way back."""

    def __init__(self, spatial: int, **options: Any) -> None:
        super().__init__()
        self.pool = getattr(convext, f"MaxPool{spatial}d")(return_indices=True, **options)
        self.unpool = getattr(convext, f"MaxUnpool{spatial}d")(2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, indices = self.pool(x)
        return (y, indices, self.unpool(y, indices, x.shape)) if self.pool.kernel_size == 2 else (y, indices)


def _pools() -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for d in (1, 2, 3):
        maximum, average, power = (getattr(convext, f"{kind}Pool{d}d") for kind in ("Max", "Avg", "LP"))
        adaptive_max, adaptive_avg = (getattr(convext, f"Adaptive{kind}Pool{d}d") for kind in ("Max", "Avg"))
        uneven = (5, 3, 2)[:d]
        found |= {
            f"max{d}d": maximum(3, 2, 1),
            f"max{d}d ceil": maximum(3, 2, ceil_mode=True),
            f"max{d}d dilated": maximum(2, 1, 1, 3),
            f"max{d}d same": maximum(2, 1, "same"),
            f"max{d}d per side": maximum(4, 3, tuple((2, 1) for _ in range(d)), ceil_mode=True),
            f"max{d}d indices": WithIndices(d, kernel_size=2),
            f"max{d}d indices, padded": WithIndices(d, kernel_size=3, stride=2, padding=1, ceil_mode=True),
            f"max{d}d indices, dilated": WithIndices(d, kernel_size=(2,) * d, stride=1, padding=1, dilation=3),
            f"avg{d}d": average(2),
            f"avg{d}d padded": average(4, 2, 1),
            f"avg{d}d without padding": average(4, 3, 2, count_include_pad=False),
            f"avg{d}d ceil": average(4, 3, 1, ceil_mode=True),
            f"avg{d}d ceil without padding": average(4, 3, 1, ceil_mode=True, count_include_pad=False),
            f"avg{d}d same": average(2, 2, "same_lower", count_include_pad=False),
            f"avg{d}d dilated": average(2, 1, 1, dilation=3),
            f"avg{d}d dilated without padding": average(2, 1, 1, count_include_pad=False, dilation=3),
            f"lp{d}d": power(2, 2),
            f"lp{d}d padded": power(4, 2, 1, padding=1, dilation=2),
            f"lp{d}d inf": power(float("inf"), 2, ceil_mode=True),
            f"adaptive max{d}d": adaptive_max(uneven),
            f"adaptive max{d}d indices": adaptive_max(uneven, return_indices=True),
            f"adaptive max{d}d alike": adaptive_max((13, 3, 1)[:d] if d == 1 else (3, 4, 5)[:d], return_indices=True),
            f"adaptive max{d}d larger": adaptive_max((17, 11, 2)[:d]),
            f"adaptive avg{d}d": adaptive_avg(uneven),
            f"adaptive avg{d}d alike": adaptive_avg(13 if d == 1 else (3, 4, 5)[:d]),
            f"adaptive avg{d}d larger": adaptive_avg((17, 11, 2)[:d]),
            f"norm{d}d": getattr(convext, f"BatchNorm{d}d")(2),
        }
    found["avg2d divided by 3"] = convext.AvgPool2d(2, 2, 1, divisor_override=3)
    found["global avg"] = convext.GlobalAvgPool()
    found["global max"] = convext.GlobalMaxPool(keepdim=False)
    found["k max of places"] = convext.KMaxPool(5, return_indices=True)
    found["norm2d, activated"] = convext.FusedSequential(convext.BatchNorm2d(2), nn.ReLU6())
    found["k max of a dimension"] = convext.KMaxPool1d(3, dim=2)
    return found


class Together(nn.Module):
    """Every layer, each on the input of its number of dimensions."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.names = list(layers)
        self.layers = nn.ModuleList(layers.values())

    def outputs_by_name(self, *inputs: Tensor) -> list[tuple[str, Tensor]]:
        found = []
        for name, layer in zip(self.names, self.layers, strict=True):
            result = layer(inputs[0 if "1d" in name or len(inputs) == 1 else 2 if "3d" in name else 1])
            found += [(name, t) for t in (result if isinstance(result, tuple) else (result,))]
        return found

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [output for _, output in self.outputs_by_name(*inputs)]


def operands(batch: int = 2, extra: int = 0) -> tuple[Tensor, ...]:
    make = numerics.integers(seed=extra)
    return tuple(make(batch, 2, *(n + extra for n in peer.small_size(d))) for d in (1, 2, 3))


def exported(model: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own
        for p in model.parameters():
            if not isinstance(p, nn.UninitializedParameter):
                p.copy_(numerics.integers(seed=p.numel())(*p.shape))
        return convext.export_onnx(model.eval(), inputs, **options)


def session(program: Any) -> Any:
    bytes = program if isinstance(program, str) else program.model_proto.SerializeToString()
    return runtime.InferenceSession(bytes, providers=["CPUExecutionProvider"])


def run(running: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    names = [i.name for i in running.get_inputs()]
    return [torch.from_numpy(a) for a in running.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))]


def assert_agree(name: str, actual: Tensor, expected: Tensor) -> None:
    """Averages, powers and normalisations round in another order: a division, a root and 64 terms at most."""
    if any(kind in name for kind in ("avg", "lp", "norm")):
        assert actual.dtype == expected.dtype, name
        bound = numerics.error_bound(expected, expected.abs() + 3, torch.full_like(expected, 80), expected.dtype)
        numerics.assert_within(actual, expected.double(), bound, name)
    else:
        numerics.assert_equal(actual, expected, name)


@pytest.fixture(scope="module")
def written() -> tuple[Together, Any]:
    model = Together(_convolutions() | _pools())
    inputs = operands()
    model(*inputs)  # what is lazy is made
    return model, exported(model, inputs)


def test_every_layer_is_there() -> None:
    """Of convext.nn, but for fractional max pooling and the other lazy ones, which become layers that are."""
    there = {type(m).__name__ for m in Together(_convolutions() | _pools()).modules()}
    left = {name for name in convext.nn.__all__ if name not in there}
    assert left == {n for n in convext.nn.__all__ if n.startswith(("Lazy", "Fractional")) and n != "LazyConv2d"}


def test_every_layer_in_onnx_runtime(written: tuple[Together, Any]) -> None:
    model, program = written
    inputs = operands()
    with torch.no_grad():
        expected = model.outputs_by_name(*inputs)
    for (name, e), a in zip(expected, run(session(program), inputs), strict=True):
        assert_agree(name, a, e)


def test_only_standard_operators(written: tuple[Together, Any]) -> None:
    _, program = written
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert {node.domain for node in program.model_proto.graph.node} <= {"", "ai.onnx"}
    assert not program.model_proto.functions


def _of_any_size() -> dict[str, nn.Module]:
    return {
        "same": convext.Conv2d(2, 3, 3, 2, "same"),
        "circular": convext.Conv2d(2, 2, 4, padding="same_lower", padding_mode="circular", flip_kernel=True),
        "symmetric": convext.Conv2d(2, 2, 3, 2, "same", padding_mode="symmetric"),
        "transposed": convext.ConvTranspose2d(2, 3, 3, 2, 1, 1),
        "transposed same": convext.ConvTranspose2d(2, 3, 4, 2, "same"),
        "max ceil": convext.MaxPool2d(3, 2, 1, ceil_mode=True),
        "max indices": WithIndices(2, kernel_size=3, stride=2, padding="same"),
        "avg ceil": convext.AvgPool2d(4, 3, 1, ceil_mode=True),
        "avg same": convext.AvgPool2d(2, 2, "same_lower", count_include_pad=False),
        "lp padded": convext.LPPool2d(4, 3, 2, padding=1),
        "global": convext.GlobalMaxPool(),
        "k max": convext.KMaxPool(4),
    }


def test_sizes_known_only_at_run_time() -> None:
    """Batch and places are free: "same" with a stride, ceil_mode and transposed convolution reckon with them."""
    model = Together(_of_any_size())
    image = operands()[1]
    free = {0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    running = session(exported(model, (image,), dynamic_shapes=((free,),)))
    for size, extra in ((1, 0), (3, 2), (2, 3)):
        image = operands(size, extra)[1]
        with torch.no_grad():
            expected = model.outputs_by_name(image)
        for (name, e), a in zip(expected, run(running, (image,)), strict=True):
            assert_agree(f"{name} {size} {extra}", a, e)


def test_a_converted_network_in_a_file(tmp_path: Path) -> None:
    """Weights go with it; numbers as far apart as two orders of summing may be."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    convext.convert(net)
    x = torch.randn(2, 3, 24, 20)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convext.export_onnx(net, (x,), path, input_names=["image"])
    (actual,) = run(session(str(path)), (x,))
    with torch.no_grad():
        torch.testing.assert_close(actual, net(x), rtol=1e-5, atol=1e-6)


# What cannot be ------------------------------------------------------------------------------------------------------


def test_what_onnx_has_no_operator_for_is_refused() -> None:
    x = torch.zeros(1, 2, 9, 8)
    with pytest.raises(NotImplementedError, match="export_onnx: ONNX has no operator for fractional max pooling"):
        exported(convext.FractionalMaxPool2d(2, 3), (x,))
    with pytest.raises(NotImplementedError, match="adaptive pooling of a size known only when the model runs"):
        exported(convext.AdaptiveAvgPool2d(3), (x,), dynamic_shapes=({2: torch.export.Dim.DYNAMIC},))


def test_an_older_operator_set_is_refused() -> None:
    with pytest.raises(ValueError, match="opset_version must be at least 20, got 18"):
        convext.export_onnx(nn.Identity(), (torch.zeros(1),), opset_version=18)


def test_missing_packages_give_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"convext.onnx needs onnx and onnxscript: pip install convext\[onnx\]"):
        convext.export_onnx(nn.Identity(), (torch.zeros(1),))


def test_every_operator_has_a_translation() -> None:
    names = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("convext::")}
    assert {op.name() for op in convext.onnx.translation_table()} == names
    assert C.conv2d is not None


ACTIVATIONS = _C.activations()


class Fused(nn.Module):
    """Every activation behind a convolution with a residual, and behind a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 2, 3, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for i, name in enumerate(ACTIVATIONS):
            last = i % 2 == 1
            y = C.conv_fused(x, self.weight, padding=1, residual=x, residual_last=last, activation=name, a=0.25, b=3.0)
            found.append(y)
            scale = self.weight[0].flatten()[:4] * 0.125
            found.append(C.channel_scale([x, x], scale, scale + 1, name, 0.25, 3.0))
        return found


def test_fused_operators_in_onnx_runtime() -> None:
    model, x = Fused().requires_grad_(False), numerics.integers()(2, 2, 5, 6)
    running = session(exported(model, (x,)))
    for actual, expected in zip(run(running, (x,)), model(x), strict=True):
        # ONNX Runtime's exponential is its own: a few units in the last place of numbers up to 40.
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
