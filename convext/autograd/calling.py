"""How an operation is called: plain, with a gradient, or under a function transform; see :mod:`convext.autograd`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from convext import _C

Gradients: TypeAlias = tuple[Any, ...]


def transforming() -> bool:
    """Inside torch.func.* or a forward_ad.dual_level()?"""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def call(plain: type[Function], op: Callable[..., Any], tensors: tuple[Tensor | None, ...], *rest: Any) -> Any:
    """The operator on ``(*tensors, *rest)`` by the cheapest way that keeps every derivative."""
    if not torch.compiler.is_compiling() and transforming():
        return plain.for_transforms.apply(*tensors, _Rest(rest))  # type: ignore[attr-defined]
    if needs_grad(*tensors):
        return plain.apply(*tensors, *rest)
    return op(*tensors, *rest)


def without_keeping(trained: bool, function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), keeping no packed weight where it is trained: it will have changed when it is next used."""
    if not trained or torch.compiler.is_compiling():
        return function(*args)
    before = _C.keep_packed_weights(False)
    try:
        return function(*args)
    finally:
        _C.keep_packed_weights(before)


class _Rest:
    """The arguments of a Function that are no tensors, as one: torch.func gives every entry of a list a tangent."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values


def for_transforms_with(jvp: Callable[..., Any]) -> Callable[[type[Function]], type[Function]]:
    """Adds to a plain Function the derived one, ``for_transforms``, with setup_context, jvp and a vmap rule.

    It is applied to the tensors and one ``_Rest``.
    """

    def decorate(plain: type[Any]) -> type[Function]:
        def forward(*args: Any) -> Any:
            *tensors, rest = args
            return plain.compute(*tensors, *rest.values)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            *tensors, rest = inputs
            saved = plain.save(ctx, (*tensors, *rest.values), output)
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)

        def backward(ctx: Any, *grad_outputs: Any) -> Gradients:
            gradients = plain.backward(ctx, *grad_outputs)
            tensors = len(ctx.needs_input_grad) - 1
            return (*(gradients if isinstance(gradients, tuple) else (gradients,))[:tensors], None)

        body = {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "jvp": staticmethod(jvp),
            "generate_vmap_rule": True,
            "__doc__": f"{plain.__name__} for function transforms.",
        }
        plain.for_transforms = type(f"{plain.__name__}ForTransforms", (plain,), body)
        return plain

    return decorate


def bilinear_jvp(function: Callable[..., Any]) -> Callable[..., Any]:
    """The tangent of f(a, b): f(da, b) + f(a, db)."""

    def jvp(ctx: Any, a_tangent: Tensor | None, b_tangent: Tensor | None, *_: Any) -> Tensor | None:
        a, b = ctx.saved_tensors
        terms = []
        if a_tangent is not None:
            terms.append(function(a_tangent, b, *ctx.rest))
        if b_tangent is not None:
            terms.append(function(a, b_tangent, *ctx.rest))
        return sum(terms[1:], terms[0]) if terms else None

    return jvp
