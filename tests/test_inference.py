"""convext.optimize: the same outputs, fewer operations, an ordinary module."""

from __future__ import annotations

import copy
import gc
import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import convext
from benchmarks.networks import NETWORKS
from convext import _C
from convext.inference import ChannelScale, FusedConv, FusedLinear, OptimizedModel


def settled(model: nn.Module) -> nn.Module:
    """In eval mode, with statistics that are not those of a new layer."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def optimized(model: nn.Module, *example: Any, **options: Any) -> OptimizedModel:
    """In float64, so that what is left of a difference is rounding; run on another batch too."""
    options.setdefault("memory_format", "contiguous")
    model = settled(model).double()
    example = tuple(x.double() if isinstance(x, Tensor) else x for x in example)
    result = convext.optimize(model, example, tolerance=1e-12, **options)
    with torch.no_grad():
        for arguments in (example, tuple(torch.cat([x, 2 * x]) for x in example)):
            expected, actual = model(*arguments), result(*arguments)
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
            assert torch.utils._pytree.tree_all_only(Tensor, Tensor.is_contiguous, actual)
    return result


def layers(model: OptimizedModel) -> list[nn.Module]:
    """What the graph calls, in order."""
    body = model.body
    return [body.get_submodule(str(n.target)) for n in body.graph.nodes if n.op == "call_module"]  # type: ignore[union-attr]


def operations(model: OptimizedModel) -> list[str]:
    """What is computed outside of layers."""
    return [str(n.target) for n in model.body.graph.nodes if n.op in ("call_function", "call_method")]  # type: ignore[union-attr]


ACTIVATIONS: list[tuple[nn.Module, str]] = [
    (nn.ReLU(), "clamp"),
    (nn.ReLU6(), "clamp"),
    (nn.Hardtanh(-0.5, 0.25), "clamp"),
    (nn.LeakyReLU(0.1), "leaky_relu"),
    (nn.SiLU(), "silu"),
    (nn.GELU(), "gelu"),
    (nn.GELU("tanh"), "gelu_tanh"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.Tanh(), "tanh"),
    (nn.Hardswish(), "hardswish"),
    (nn.Hardsigmoid(), "hardsigmoid"),
]


@pytest.mark.parametrize(("activation", "name"), ACTIVATIONS, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_convolution_norm_activation_become_one(activation: nn.Module, name: str, memory_format: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), activation)
    result = optimized(model, torch.randn(1, 3, 11, 13), memory_format=memory_format)
    (layer,) = layers(result)
    assert isinstance(layer, FusedConv)
    assert layer.activation.name == name
    assert operations(result) == []


FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    torch.relu,
    functional.relu,
    functional.relu6,
    functional.silu,
    torch.sigmoid,
    torch.tanh,
    functional.hardswish,
    functional.leaky_relu,
    lambda x: functional.gelu(x, approximate="tanh"),
    lambda x: x.clamp(-0.25, 0.5),
    lambda x: torch.clamp(x, min=0.1),
    lambda x: x.relu(),
    lambda x: x.sigmoid_(),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_activations_as_functions_and_methods(function: Callable[[Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.conv(x))

    result = optimized(Model(), torch.randn(1, 4, 9))
    assert operations(result) == []
    assert len(layers(result)) == 1


class Block(nn.Module):
    """Two convolutions and a shortcut, in one of the orders that networks have."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.two = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.one(x))
        match self.kind:
            case "sum, then activation":
                y = self.two(x)
                y += x
                return self.relu(y)
            case "activation, then sum":
                return x + functional.silu(self.two(x))
            case "sum of two convolutions":
                return self.relu(self.two(x) + self.one(x))
            case "sum with itself":
                y = self.two(x)
                return y + y
            case "used twice":
                y = self.two(x)
                return torch.cat([y, self.relu(y + x)], 1)
            case "changed in place meanwhile":
                y = self.two(x)
                x.mul_(2.0)
                return self.relu(y + x)
            case "sum with a number":
                return self.two(x) + 1.0
            case _:  # broadcast
                return self.two(x) + x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("kind", "fused", "left"),
    [
        ("sum, then activation", 2, 0),
        ("activation, then sum", 2, 0),
        ("sum of two convolutions", 2, 0),
        ("sum with itself", 1, 1),
        ("used twice", 1, 2),
        ("changed in place meanwhile", 1, 2),
        ("sum with a number", 1, 1),
        ("broadcast", 1, 2),
    ],
)
def test_residuals(kind: str, fused: int, left: int) -> None:
    result = optimized(Block(kind), torch.randn(1, 4, 7, 6))
    assert len(operations(result)) == left, result.body.code  # type: ignore[union-attr]
    assert result.report.changes["epilogues fused"] == fused


@pytest.mark.parametrize(
    ("pad", "mode"),
    [
        (nn.ZeroPad2d((1, 2, 0, 3)), "zeros"),
        (nn.ReflectionPad2d((2, 1, 1, 2)), "reflect"),
        (nn.ReplicationPad2d(2), "replicate"),
        (nn.CircularPad2d((1, 1, 2, 0)), "circular"),
        (nn.ConstantPad2d(1, 0.0), "zeros"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_padding_becomes_the_convolutions(pad: nn.Module, mode: str) -> None:
    result = optimized(nn.Sequential(pad, nn.Conv2d(2, 3, 3)), torch.randn(1, 2, 8, 9))
    (layer,) = layers(result)
    assert isinstance(layer, FusedConv)
    assert layer.padding_mode == mode


def test_padding_that_is_not_the_same_stays() -> None:
    for model in (
        nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3, padding=1)),
        nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.Conv2d(2, 2, 3)),
    ):
        assert len(layers(optimized(model, torch.randn(1, 2, 6, 6)))) == 2
    merged = optimized(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 2, 3, 2, 1)), torch.randn(1, 2, 6, 6))
    assert [layer.padding for layer in layers(merged)] == [((1, 2), (1, 2))]


def test_norms_fold_where_that_is_exact() -> None:
    after = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))
    assert len(layers(optimized(after, torch.randn(1, 4, 6, 6)))) == 1
    before = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, groups=2))
    assert len(layers(optimized(before, torch.randn(1, 4, 6, 6)))) == 1
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6))
    assert len(layers(optimized(transposed, torch.randn(1, 4, 5, 5)))) == 1
    padded = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1))
    assert [type(layer) for layer in layers(optimized(padded, torch.randn(1, 4, 6, 6)))] == [ChannelScale, FusedConv]


def test_norms_in_training_or_without_statistics_stay() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)).double()
    example = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    result = convext.optimize(model, example, memory_format="contiguous", tolerance=1e-12)
    assert isinstance(layers(result)[1], nn.BatchNorm2d)


def test_concatenation_norm_activation_become_one() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1)
            self.rest = nn.Sequential(nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 2, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(torch.cat([self.a(x), self.b(x)], 1))

    result = optimized(Model(), torch.randn(1, 2, 5, 5))
    assert [type(layer).__name__ for layer in layers(result)] == ["FusedConv", "FusedConv", "ChannelScale", "FusedConv"]
    assert operations(result) == []


@pytest.mark.parametrize("outputs", [1, 3, 4])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_convolution_of_concatenated_maps_is_split_where_it_has_few_outputs(
    outputs: int, pooled: bool, memory_format: str
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 4, 1)
            self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if pooled else nn.Identity()
            self.rest = nn.Sequential(nn.Conv2d(12, outputs, 1), nn.SiLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.pool(torch.cat([self.a(x), self.b(x), self.c(x)], 1)))

    result = optimized(Model(), torch.randn(1, 2, 8, 9), memory_format=memory_format)
    split = 4 * outputs <= 12
    assert result.report.changes["concatenations split"] == split
    convolutions = [layer for layer in layers(result) if isinstance(layer, FusedConv)]
    assert [len(layer.weight) for layer in convolutions] == [3, 5, 4, *[outputs] * (3 if split else 1)]
    assert [layer.activation.name for layer in convolutions[3:]] == [*["none"] * (2 * split), "silu"]
    assert [layer.bias is None for layer in convolutions[3:]] == [False, *[True] * (2 * split)]
    assert operations(result) == ([] if split else [str(torch.cat)])


def test_linear_layers_take_up_what_follows() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.ReLU())
            self.beside = nn.Sequential(nn.Linear(5, 5, bias=False), nn.GELU())
            self.last = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inside(x)
            return self.last(functional.pad(self.beside(y) + y, (1, 1)))

    result = optimized(Model(), torch.randn(4, 6))
    assert [type(layer) for layer in layers(result)] == [FusedLinear] * 3
    assert [layer.activation.name for layer in layers(result)] == ["clamp", "gelu", "none"]  # type: ignore[union-attr]
    assert operations(result) == [str(functional.pad)]
    assert result.report.changes["linear layers taken over"] == 3


@pytest.mark.parametrize("shape", [(6,), (0, 6), (1, 6), (2, 3, 6)])
def test_linear_layers_take_rows_of_every_shape(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    result = optimized(model, torch.randn(2, 6))
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(result(x), model(x).detach())
    with pytest.raises(RuntimeError):
        result(torch.randn(2, 7, dtype=torch.float64))


def test_linear_layers_of_sequences_and_of_few_bits_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    for example in (torch.randn(2, 3, 6), torch.randn(2, 6).bfloat16()):
        result = convext.optimize(model.to(example.dtype), example, tolerance=1e-2)
        assert [type(layer) for layer in layers(result)] == [nn.Linear]


def test_concatenated_maps_that_others_see_or_halves_stay_whole() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            both = torch.cat([self.a(x), self.b(x)], 1)
            return self.c(both), both

    result = optimized(Model(), torch.randn(1, 2, 5, 5))
    assert result.report.changes["concatenations split"] == 0
    half = convext.optimize(
        nn.Sequential(SplitOnce(), nn.Conv2d(8, 2, 1)).half(), torch.randn(1, 8, 4, 4).half(), tolerance=1e-2
    )
    assert half.report.changes["concatenations split"] == 0


class SplitOnce(nn.Module):
    """Its channels, the other way around."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 4:], x[:, :4]], 1)


def test_a_convolution_called_twice_keeps_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norms = nn.Conv2d(3, 3, 3, padding=1), nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.norms[1](self.conv(torch.relu(self.norms[0](self.conv(x)))))

    result = optimized(Twice(), torch.randn(1, 3, 6, 6))
    assert len(layers(result)) == 2


def test_functional_convolutions_and_bare_layers() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(functional.conv2d(x, self.weight, self.bias, stride=2, padding=1))

    assert [type(layer) for layer in layers(optimized(Functional(), torch.randn(1, 2, 6, 6)))] == [FusedConv]
    assert [type(layer) for layer in layers(optimized(nn.Conv2d(2, 2, 3), torch.randn(1, 2, 6, 6)))] == [FusedConv]


def test_idle_layers_go() -> None:
    model = nn.Sequential(nn.Identity(), nn.Dropout(), nn.Conv2d(2, 2, 1), nn.Dropout2d(), nn.ReLU(), nn.Identity())
    assert len(layers(optimized(model, torch.randn(1, 2, 4, 4)))) == 1


def test_what_cannot_be_traced_is_named_and_works() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())
            self.tail = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.head(x)
            return self.tail(x) if float(x.sum()) > 1e9 else x

    result = optimized(Branching(), torch.randn(1, 2, 6, 6))
    assert [(name, kind) for name, kind, _ in result.report.left] == [("", "Branching")]
    assert result.report.changes["epilogues fused"] == 1
    assert isinstance(result.body.tail, convext.Conv2d)
    assert "not traced" in str(result.report)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    model = settled(NETWORKS[name]())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    side = 224 if name == "VGG-16" else 64  # its linear layers fix the size
    x = torch.randn(1, 3, side, side)
    result = convext.optimize(model, x, memory_format="channels_last" if name == "DenseNet-121" else "contiguous")
    assert result.report.error <= 1e-5
    assert result.report.left == []
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in result.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    other = torch.randn(2, 3, side, side if name == "VGG-16" else 96)
    with torch.no_grad():
        torch.testing.assert_close(result(other), model(other), rtol=1e-3, atol=1e-4)


def small(memory_format: str = "auto") -> tuple[OptimizedModel, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Block8(), nn.MaxPool2d(2))
    x = torch.randn(2, 3, 48, 48)
    return convext.optimize(settled(model), x, memory_format=memory_format), x


class Block8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def test_it_is_an_ordinary_module() -> None:
    model, x = small()
    expected = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), expected)
    assert str(loaded.report) == str(model.report)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(twin(x), expected)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), expected)
    torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_input_are_there() -> None:
    model, x = small()
    model = model.double()
    x = x[:1, :, :6, :6].double().requires_grad_()
    assert torch.autograd.gradcheck(model, (x,))


def test_threads_give_the_same_bits() -> None:
    model, x = small()
    inputs = [x + i for i in range(8)]
    with torch.inference_mode():
        expected = [model(i) for i in inputs]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                for actual, wanted in zip(pool.map(call_in_inference_mode(model), inputs), expected, strict=True):
                    assert torch.equal(actual, wanted)


def call_in_inference_mode(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = model(x)
            return result

    return call


def test_it_compiles_and_exports() -> None:
    model, x = small()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model.body, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
        exported = torch.export.export(model.body, (x,))
        torch.testing.assert_close(exported.module()(x), expected, rtol=1e-5, atol=1e-5)
        assert any("conv_fused" in str(node.target) for node in exported.graph.nodes)


def test_optimized_inside_inference_mode_weights_stay_packed() -> None:
    with torch.inference_mode():
        model, x = small()
        model(x)
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_memory_of_an_arena_comes_back() -> None:
    convext.clear_packed_weights()
    gc.collect()
    before = _C.arena_bytes()[1]  # of gradients that other tests hold
    model, x = small("contiguous")  # in channels_last what comes out is a copy, which is torch's
    outputs = [model(x) for _ in range(3)]
    held, used = _C.arena_bytes()
    assert used > 0
    assert held >= used
    copies = [output.clone() for output in outputs]
    model(x + 1)
    assert all(torch.equal(a, b) for a, b in zip(outputs, copies, strict=True)), "an output was written over"
    kept = convext.packed_weight_bytes()
    del outputs
    assert _C.arena_bytes()[1] <= used - 3 * 2 * 8 * 24 * 24 * 4 + kept
    del model
    convext.clear_packed_weights()
    assert _C.arena_bytes()[1] == before
    _C.trim_arena()
    assert (_C.arena_bytes()[0] == 0) == (before == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is lent where there is MADV_FREE")
def test_idle_memory_is_lent_and_used_again() -> None:
    """More than is kept idle: the next that is made lies there, as written, and all goes back on demand."""
    gc.collect()
    _C.trim_arena()
    held, used = _C.arena_bytes()
    x = torch.arange(2.0**24).reshape(1, 1, 4096, 4096)  # 64 MB
    for _ in range(2):
        on = _C.use_arena(True)
        try:
            outputs = [convext.functional.avg_pool2d(x + i, 1) for i in range(6)]
        finally:
            _C.use_arena(on)
        most = _C.arena_bytes()
        assert most[1] >= used + 6 * x.nbytes
        assert most[0] <= held + 7 * x.nbytes, "slabs that were lent are not used again"
        for i, output in enumerate(outputs):
            assert torch.equal(output, x + i)
        del outputs, output
        assert _C.arena_bytes() == (most[0], used)
    _C.trim_arena()
    assert _C.arena_bytes()[0] <= held


def test_errors() -> None:
    x = torch.randn(1, 2, 4, 4)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        convext.optimize(lambda x: x, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"memory_format must be one of .*, got 'nhwc'"):
        convext.optimize(nn.Conv2d(2, 2, 1), x, memory_format="nhwc")
    with pytest.raises(RuntimeError, match="differs from the original's by"):
        convext.optimize(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.GELU()), x, tolerance=-1.0)
