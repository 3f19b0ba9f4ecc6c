"""Shapes without numbers: the operators under torch.library.opcheck, fake, symbolic and meta tensors.

A fake result has the size, strides and dtype of the real one, over every problem of tests/cases.py; with symbolic sizes
it comes from the formulas in convext/ops.py, which must agree with the C++ ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import convext
import convext.functional as C
from benchmarks.shapes import ConvProblem, PoolProblem
from convext import ops
from tests import calls, cases, numerics


def _flat(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def assert_described(described: Any, real: Any) -> None:
    """Size, strides and dtype."""
    for d, r in zip(_flat(described), _flat(real), strict=True):
        assert tuple(int(n) for n in d.shape) == tuple(r.shape)
        assert tuple(int(n) for n in d.stride()) == r.stride()
        assert d.dtype == r.dtype


# opcheck -------------------------------------------------------------------------------------------------------------


def _operator_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Each operator with arguments, in one, two and three dimensions, contiguous and channels_last."""
    found: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    make = numerics.normals()
    convolutions = [p for p in cases.CONV_CORE if p.name in ("conv1d", "reflect_per_side", "conv3d_stride_2")]
    for p in convolutions:
        for channels_last in calls.layouts(p.spatial):
            o = calls.conv_operands(p, make, channels_last)
            options = (*p.options, "auto")
            name = f"{p.name}-{'channels_last' if channels_last else 'contiguous'}"
            found[f"conv_forward-{name}"] = ops.conv_forward, (o.input, o.weight, o.bias, *options)
            fused = (*p.options, "clamp", 0.0, 6.0, False, "auto")
            found[f"conv_fused-{name}"] = ops.conv_fused, (o.input, o.weight, o.bias, o.grad_output, *fused)
            epilogue = (("clamp", 0.0, 6.0), ("clamp", 0.0, float("inf")), ("leaky_relu", 0.1, 0.0))
            for activation in epilogue:
                found[f"activation_backward-{name}-{activation}"] = (
                    ops.activation_backward,
                    (o.grad_output, o.grad_output, *activation),
                )
            for affine in (True, False):
                parameters = (make(o.input.shape[1]), make(o.input.shape[1])) if affine else (None, None)
                norm = (o.input, *parameters, 1e-5, "clamp", 0.0, 6.0)
                found[f"batch_norm-{name}-{affine}"] = ops.batch_norm, norm
            kept = ops.batch_norm(*norm)[1]
            found[f"batch_norm_backward-{name}"] = (
                ops.batch_norm_backward,
                (o.input, o.input, kept, "silu", 0.0, 0.0),
            )
            line = (make(2 * o.input.shape[1]), make(2 * o.input.shape[1]), "silu", 0.0, 0.0)
            found[f"channel_scale-{name}"] = ops.channel_scale, ([o.input, o.input], *line)
            found[f"conv_backward_input-{name}"] = (
                ops.conv_backward_input,
                (o.grad_output, o.weight, list(p.input_shape), *options),
            )
            found[f"conv_backward_weight-{name}"] = (
                ops.conv_backward_weight,
                (o.grad_output, o.input, list(p.weight_shape), *options),
            )
            found[f"conv_backward_bias-{name}"] = ops.conv_backward_bias, (o.grad_output,)
    for p in (q for q in cases.MAX_CORE if q.name in ("pool1d", "window_289_places", "pool3d", "adaptive_7_to_5")):
        for channels_last in calls.layouts(p.spatial):
            x = p.operand(make, channels_last)
            name = f"{p.name}-{'channels_last' if channels_last else 'contiguous'}"
            output, places = ops.max_pool(x, *p.window, True, "auto")
            size = list(p.input_shape)
            average = (True, None, "auto")
            for with_places in (True, False):
                found[f"max_pool-{name}-{with_places}"] = ops.max_pool, (x, *p.window, with_places, "auto")
            found[f"max_pool_backward-{name}"] = ops.max_pool_backward, (output, places, size, *p.window, "auto")
            found[f"max_pool_indices-{name}"] = ops.max_pool_indices, (places, size, *p.window)
            found[f"avg_pool-{name}"] = ops.avg_pool, (x, *p.window, *average)
            found[f"avg_pool_backward-{name}"] = ops.avg_pool_backward, (output, size, *p.window, *average)
    x, samples = make(2, 3, 6, 5), torch.rand(2, 3, 2)
    values, indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    output, places = ops.fractional_max_pool(x, samples, [2, 2], [3, 3], True)
    found["max_unpool"] = ops.max_unpool, (values, indices, [6, 5])
    last = torch.channels_last
    found["max_unpool-channels_last"] = ops.max_unpool, (values.contiguous(memory_format=last), indices, [6, 5])
    found["k_max_pool"] = ops.k_max_pool, (x, 4)
    for with_places in (True, False):
        drawn = (x, samples, [2, 2], [3, 3], with_places)
        found[f"fractional_max_pool-{with_places}"] = ops.fractional_max_pool, drawn
    rest = (places, samples, list(x.shape), [2, 2])
    found["fractional_max_pool_backward"] = ops.fractional_max_pool_backward, (output, *rest)
    found["fractional_max_pool_indices"] = ops.fractional_max_pool_indices, rest
    return found


OPERATOR_CALLS = _operator_calls()


def test_every_operator_is_checked() -> None:
    checked = {op.name().split("::")[1].split(".")[0] for op, _ in OPERATOR_CALLS.values()}
    registered = {
        name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "convext::" in name
    }
    assert checked == registered


@pytest.mark.parametrize("call", OPERATOR_CALLS)
def test_opcheck(call: str) -> None:
    """Schema, fake, and tracing with dynamic shapes. Gradients are convext.autograd's, above the operators."""
    op, args = OPERATOR_CALLS[call]
    results = torch.library.opcheck(op, args)
    assert results["test_schema"] == results["test_faketensor"] == results["test_aot_dispatch_dynamic"] == "SUCCESS"


# Fake, symbolic, meta ------------------------------------------------------------------------------------------------


def conv_call(p: ConvProblem, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    rest = (p.stride, p.padding, p.dilation, p.groups)
    function = getattr(C, f"conv{p.spatial}d")
    return function(x, w, b, *rest, padding_mode=p.padding_mode, flip_kernel=p.flip_kernel)


def pool_call(p: PoolProblem, x: Tensor) -> Any:
    if p.adaptive:
        if p.average:
            return getattr(C, f"adaptive_avg_pool{p.spatial}d")(x, p.kernel)
        return getattr(C, f"adaptive_max_pool{p.spatial}d")(x, p.kernel, True)
    rest = (p.kernel, p.stride, p.padding)
    if p.average:
        averaging = (p.ceil_mode, p.count_include_pad, p.divisor_override)
        return getattr(C, f"avg_pool{p.spatial}d")(x, *rest, *averaging, dilation=p.dilation)
    return getattr(C, f"max_pool{p.spatial}d")(x, *rest, p.dilation, p.ceil_mode, True)


def _faked(mode: FakeTensorMode, *tensors: Tensor | None, symbolic: bool) -> list[Any]:
    out: list[Any] = []
    for t in tensors:
        if t is None:
            out.append(None)
            continue
        context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * t.dim()) if symbolic else None
        out.append(mode.from_tensor(t, symbolic_context=context))
    return out


def _fake_mode(symbolic: bool) -> FakeTensorMode:
    # Without the hint-free 0/1 specialisation every size is a symbol.
    return FakeTensorMode(shape_env=ShapeEnv(specialize_zero_one=False, duck_shape=False) if symbolic else None)


def fakes_of(problems: Sequence[Any]) -> pytest.MarkDecorator:
    """Every problem with sizes that are numbers, the core ones with symbols too, a tenth of a second each."""
    pairs = [(p, symbolic) for symbolic in (False, True) for p in problems if not symbolic or "core" in p.tags]
    return pytest.mark.parametrize(
        ("problem", "symbolic"), pairs, ids=lambda v: str(v) if not isinstance(v, bool) else ("fake", "symbolic")[v]
    )


@fakes_of(cases.CONVOLUTIONS)
def test_fake_convolution(problem: ConvProblem, symbolic: bool) -> None:
    for channels_last in calls.layouts(problem.spatial):
        x, w, b = problem.operands(numerics.normals(), channels_last)
        real = conv_call(problem, x, w, b)
        with _fake_mode(symbolic) as mode:
            fx, fw, fb = _faked(mode, x, w, b, symbolic=symbolic)
            fake = conv_call(problem, fx, fw, fb)
            if symbolic:
                assert any(isinstance(n, torch.SymInt) for n in fake.shape)
            assert_described(fake, real)


@fakes_of(cases.POOLS)
def test_fake_pooling(problem: PoolProblem, symbolic: bool) -> None:
    for channels_last in calls.layouts(problem.spatial):
        x = problem.operand(numerics.normals(), channels_last)
        real = pool_call(problem, x)
        with _fake_mode(symbolic) as mode:
            (fx,) = _faked(mode, x, symbolic=symbolic)
            fake = pool_call(problem, fx)
            if symbolic:
                assert any(isinstance(n, torch.SymInt) for n in _flat(fake)[0].shape)
            assert_described(fake, real)


@pytest.mark.parametrize("problem", cases.CONV_CORE, ids=str)
def test_fake_gradients(problem: ConvProblem) -> None:
    """Backward through fake tensors describes the real gradients."""
    for channels_last in calls.layouts(problem.spatial):
        real_leaves = [t.requires_grad_() for t in problem.operands(numerics.normals(), channels_last) if t is not None]
        output = conv_call(problem, *real_leaves, *([] if problem.bias else [None]))
        real = torch.autograd.grad(output, real_leaves, output.detach())
        with _fake_mode(False) as mode:
            leaves = [t.detach().requires_grad_() for t in _faked(mode, *real_leaves, symbolic=False)]
            output = conv_call(problem, *leaves, *([] if problem.bias else [None]))
            assert_described(torch.autograd.grad(output, leaves, output.detach()), real)


def test_a_fake_call_raises_what_the_real_one_does() -> None:
    x, w = torch.zeros(1, 3, 4, 4), torch.zeros(2, 4, 3, 3)
    with pytest.raises(RuntimeError) as real:
        C.conv2d(x, w)
    with _fake_mode(False) as mode, pytest.raises(RuntimeError) as fake:
        C.conv2d(*_faked(mode, x, w, symbolic=False))
    assert str(real.value) in str(fake.value)


LAYERS = {
    **{f"Conv{d}d": (3, 4, 3) for d in (1, 2, 3)},
    **{f"ConvTranspose{d}d": (3, 4, 3) for d in (1, 2, 3)},
    **{f"{kind}Pool{d}d": (2,) for kind in ("Max", "Avg") for d in (1, 2, 3)},
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_the_meta_device(name: str) -> None:
    """Forward and backward, without memory or arithmetic."""
    spatial = int(name[-2])
    device = {"device": "meta"} if "Conv" in name else {}
    layer = getattr(convext, name)(*LAYERS[name], **device)
    x = torch.empty(2, 3, *[6] * spatial, device="meta", requires_grad=True)
    output = layer(x)
    real = getattr(convext, name)(*LAYERS[name])(torch.zeros(x.shape))
    assert output.is_meta
    assert output.shape == real.shape
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.is_meta
    assert x.grad.shape == x.shape
    for parameter in layer.parameters():
        assert parameter.grad.shape == parameter.shape
