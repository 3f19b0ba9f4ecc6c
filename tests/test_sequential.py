"""FusedSequential: the results, gradients, hooks, copies and traces of a Sequential, in fewer passes; and the
convolution whose gradient it needs, with a clamp or a leaky ReLU behind it."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as torch_functional

import convext
from convext import _C, functional, ops
from tests import numerics

# Convolutions with an activation, trained ----------------------------------------------------------------------------

PIECEWISE = [("clamp", 0.0, math.inf), ("clamp", -1.0, 6.0), ("leaky_relu", 0.25, 0.0)]


def apart(x: Tensor, w: Tensor, bias: Tensor | None, epilogue: Any, **given: Any) -> Tensor:
    """By torch's operations."""
    y = getattr(torch_functional, f"conv{x.dim() - 2}d")(x, w, bias, **given)
    activation, a, b = epilogue
    if activation == "leaky_relu":
        return torch_functional.leaky_relu(y, a)
    return torch_functional.relu(y) if b == math.inf else torch_functional.hardtanh(y, a, b)


def together(x: Tensor, w: Tensor, bias: Tensor | None, epilogue: Any, **given: Any) -> Tensor:
    activation, a, b = epilogue
    return functional.conv_fused(x, w, bias, activation=activation, a=a, b=b, **given)


@pytest.mark.parametrize("epilogue", PIECEWISE, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", numerics.FLOATS, ids=numerics.name_of)
def test_gradients_are_exact(epilogue: Any, channels_last: bool, dtype: torch.dtype) -> None:
    """On small integers, bends of the activations included, as torch's in float64."""
    make = numerics.integers(torch.float64, largest=2)
    shapes = [((2, 3, 9), (4, 3, 3)), ((2, 4, 8, 7), (6, 2, 3, 3)), ((1, 2, 4, 5, 6), (3, 2, 1, 3, 3))]
    for x_shape, w_shape in shapes:
        x, w, bias = make(*x_shape), make(*w_shape), make(w_shape[0])
        if channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        given = {"padding": 1, "groups": x_shape[1] // w_shape[1]}
        results = []
        for call, kind in ((apart, torch.float64), (together, dtype)):
            operands = [t.to(kind).requires_grad_() for t in (x, w, bias)]
            with numerics.poisoned():
                y = call(*operands, epilogue, **given, **({"algorithm": "im2col"} if call is together else {}))
                dy = numerics.integers(torch.float64, largest=2, seed=1)(*y.shape).to(kind)
                results.append([y.detach(), *torch.autograd.grad(y, operands, dy)])
            if call is together:
                assert y.grad_fn is not None
                assert y.grad_fn.name() == "ConvActivatedBackward"
        for name, expected, actual in zip(("y", "dx", "dw", "dbias"), *results, strict=True):
            numerics.assert_equal(actual.double(), expected.to(dtype).double(), f"{x_shape} {name}")


def test_gradients_of_any_order() -> None:
    torch.manual_seed(0)
    operands = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((1, 2, 5, 5), (3, 2, 3, 3), (3,))]
    for epilogue in PIECEWISE:
        call = lambda x, w, b, epilogue=epilogue: together(x, w, b, epilogue, padding=1)  # noqa: E731
        assert torch.autograd.gradcheck(call, operands)
        assert torch.autograd.gradgradcheck(call, operands)
    y = together(*operands, PIECEWISE[0], padding=1)
    seeds = torch.randn(3, *y.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, operands[0], seeds, is_grads_batched=True, retain_graph=True)
    one_by_one = torch.stack([torch.autograd.grad(y, operands[0], s, retain_graph=True)[0] for s in seeds])
    torch.testing.assert_close(batched, one_by_one)


def test_what_is_wanted_is_what_is_kept() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    for which in (0, 1):
        operands = [x.clone(), w.clone()]
        operands[which].requires_grad_()
        y = together(*operands, None, PIECEWISE[0])
        (actual,) = torch.autograd.grad(y, operands[which], torch.ones_like(y))
        (expected,) = torch.autograd.grad(apart(*operands, None, PIECEWISE[0]), operands[which], torch.ones_like(y))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    trained = together(x.requires_grad_(), w, None, PIECEWISE[0])
    with torch.no_grad():
        trained.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        trained.sum().backward()
    assert together(x, w, None, ("gelu", 0.0, 0.0)).grad_fn.name() != "ConvActivatedBackward"  # type: ignore[union-attr]
    assert functional.conv_fused(x, w, residual=torch.ones(1, 3, 4, 4), activation="clamp", b=6.0).requires_grad


def test_the_operator_checks_what_it_is_given() -> None:
    y = torch.randn(2, 3, 4, 4)
    for wrong in (y[:1], y.double()):
        with pytest.raises(RuntimeError, match="grad_output must be Float of size"):
            ops.activation_backward(wrong, y, "clamp", 0.0, 6.0)
    with pytest.raises(RuntimeError, match="3 to 5 dimensions"):
        ops.activation_backward(y[0, 0], y[0, 0], "clamp", 0.0, 6.0)
    for activation, a, b in (("silu", 0.0, 0.0), ("clamp", 6.0, 0.0), ("leaky_relu", -0.5, 0.0), ("none", 0.0, 0.0)):
        with pytest.raises(ValueError, match="does not tell its slope"):
            ops.activation_backward(y, y, activation, a, b)
    with pytest.raises(ValueError, match="activation must be one of"):
        ops.activation_backward(y, y, "swish", 0.0, 0.0)


# FusedSequential -----------------------------------------------------------------------------------------------------


class Block(nn.Sequential):
    """As torchvision's: a Sequential with a constructor and an attribute of its own."""

    def __init__(self, inputs: int, outputs: int, activation: nn.Module) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), activation)
        self.outputs = outputs


def network(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Block(3, 8, nn.ReLU6(inplace)),
        Block(8, 8, nn.SiLU()),
        nn.Sequential(nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.GELU()),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.SiLU(), nn.ConvTranspose2d(4, 4, 2), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def converted() -> tuple[nn.Sequential, nn.Sequential]:
    theirs = network()
    ours = copy.deepcopy(theirs)
    convext.convert(ours)
    return ours, theirs


def test_convert_and_revert() -> None:
    ours, theirs = converted()
    assert isinstance(ours[0], Block)
    assert isinstance(ours[0], convext.FusedSequential)
    assert ours[0].outputs == 8
    assert type(ours[2]) is convext.FusedSequential
    assert type(ours[3]) is convext.FusedSequential
    assert type(ours[4]) is nn.Sequential, "nothing to gain"
    assert type(ours) is nn.Sequential
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert type(ours[2][1:]) is convext.FusedSequential
    assert convext.convert(ours).swapped == [], "once is enough"
    report = convext.revert(ours)
    assert ("0", "Block") in report.swapped
    assert [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]


def test_training_follows_torchs() -> None:
    ours, theirs = converted()
    x, target = torch.randn(4, 3, 10, 10), torch.randn(4, 4)
    for net in (ours, theirs):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimiser.zero_grad()
            torch_functional.mse_loss(net(x), target).backward()
            optimiser.step()
    for (key, a), (_, e) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5, msg=key)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def names_of(output: Tensor) -> list[str]:
    """The nodes of a graph, by depth first."""
    found, waiting = [], [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.append(node.name())
            waiting += [following for following, _ in node.next_functions]
    return found


def test_hooks_see_what_they_would() -> None:
    ours = network(inplace=False)  # which hooks on gradients do not go with
    convext.convert(ours)
    x = torch.randn(2, 3, 6, 6)
    assert "HardtanhBackward" not in " ".join(names_of(ours(x)))
    seen: list[Tensor] = []
    handle = ours[0][1].register_forward_hook(lambda _m, _i, output: seen.append(output.detach().clone()))
    y = ours(x)
    assert "HardtanhBackward" in " ".join(names_of(y))
    assert seen[0].min() < 0, "before the activation"
    handle.remove()
    torch.testing.assert_close(ours(x), y)
    for register in ("register_forward_pre_hook", "register_full_backward_hook"):
        handle = getattr(ours[0][2], register)(lambda *_: seen.append(x))
        before = len(seen)
        ours(x).sum().backward()
        assert len(seen) > before, register
        handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(x))
    assert "HardtanhBackward" in " ".join(names_of(ours(x)))
    handle.remove()


def test_copies_and_pickles() -> None:
    ours, _ = converted()
    x = torch.randn(2, 3, 6, 6)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)]
    y = ours(x)
    for other in copies:
        assert [type(m) for m in other.modules()] == [type(m) for m in ours.modules()]
        assert other[0].outputs == 8
        numerics.assert_same_bits(other(x), y)


def test_compiled_and_traced() -> None:
    ours, theirs = converted()
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), copy.deepcopy(theirs)(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    y.square().sum().backward()
    traced = torch.fx.symbolic_trace(copy.deepcopy(ours))
    torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-4)
    given = x.clone().requires_grad_()
    fresh = copy.deepcopy(ours)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        fresh(given).square().sum().backward()
    same = x.clone().requires_grad_()
    copy.deepcopy(ours)(same).square().sum().backward()
    assert given.grad is not None
    assert same.grad is not None
    torch.testing.assert_close(given.grad, same.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_training(dynamic: bool) -> None:
    """The fused operators, the same gradients and running statistics; activations kept for the gradient lie in the
    arena, as those of an eager step do."""
    ours, _ = converted()
    eager, given = copy.deepcopy(ours), copy.deepcopy(ours)
    ran: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        ran.extend(str(node.target) for node in graph.graph.nodes if "batch_norm" in str(node.target))
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(given, fullgraph=True, backend=aot_autograd(fw_compiler=backend), dynamic=dynamic)
    for size in (6, 8):
        x = torch.randn(4, 3, 8 * size, 8 * size)
        before = _C.arena_bytes()[1]
        y, e = compiled(x), eager(x)
        assert _C.arena_bytes()[1] - before >= 2 * 4 * 8 * (8 * size) ** 2 * 4, "two maps of the first block"
        y.square().sum().backward()
        e.square().sum().backward()
        torch.testing.assert_close(y, e, rtol=1e-5, atol=1e-6)
        for (name, a), (_, b) in zip(given.named_parameters(), eager.named_parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)
        for (name, a), (_, b) in zip(given.named_buffers(), eager.named_buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert {"convext.batch_norm.default", "convext.batch_norm_backward.default"} <= set(ran)
    assert not [name for name in ran if name.startswith("aten")]
