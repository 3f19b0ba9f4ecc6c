"""Export to ONNX: every layer as the standard's own operators, to be run where there is neither torch nor convext.

    program = convext.export_onnx(model.eval(), (image,), "model.onnx")

is ``torch.onnx.export(..., dynamo=True)`` with :func:`translation_table`, which says what each ``torch.ops.convext.*``
is in ONNX (operator set 20). Needs ``pip install convext[onnx]``. What the standard has no operator for raises
NotImplementedError: fractional max pooling, the gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from convext.onnx import convolution, fused, pooling, sizes

OPSET = 20
"""The operator set that is written, torch's own; averages dilate and Pad goes round since 19."""

_REFUSED = {
    "fractional_max_pool": "fractional max pooling, whose windows are drawn at random",
    "fractional_max_pool_indices": "fractional max pooling, whose windows are drawn at random",
    "activation_backward": "the gradient of an activation",
    "batch_norm": "batch normalisation by a batch's own statistics",
    "batch_norm_backward": "the gradient of batch normalisation",
    "conv_backward_weight": "the gradient of a convolution's weight",
    "conv_backward_bias": "the gradient of a convolution's bias",
    "max_pool_backward": "the gradient of max pooling",
    "avg_pool_backward": "the gradient of average pooling",
    "fractional_max_pool_backward": "the gradient of fractional max pooling",
}


def _refuse(what: str) -> Callable[..., Any]:
    def refused(*args: Any) -> Any:
        raise sizes.NotInOnnxError(f"export_onnx: ONNX has no operator for {what}")

    return refused


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What each operator of convext is in ONNX, for ``torch.onnx.export(..., dynamo=True, opset_version=20,
    custom_translation_table=...)``. Raises ImportError where the packages are missing."""
    sizes.require_packages()
    translations: dict[str, Callable[..., Any]] = {
        "conv_forward": convolution.conv_forward,
        "conv_fused": fused.conv_fused,
        "channel_scale": fused.channel_scale,
        "conv_backward_input": convolution.conv_transpose,
        "max_pool": pooling.max_pool,
        "max_pool_indices": pooling.max_pool_indices,
        "avg_pool": pooling.avg_pool,
        "k_max_pool": pooling.k_max_pool,
        "max_unpool": pooling.max_unpool,
        **{name: _refuse(what) for name, what in _REFUSED.items()},
    }
    return {getattr(torch.ops.convext, name).default: translation for name, translation in translations.items()}


def export_onnx(
    model: torch.nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...] = (),
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Any:
    """Writes ``model``, called with ``args`` and ``kwargs``, to ``path`` in ONNX, and returns torch's ONNXProgram.

    ``dynamic_shapes`` as for :func:`torch.export.export`; further ``options`` go to :func:`torch.onnx.export`.
    Raises NotImplementedError, naming the operator, for what ONNX cannot say; ImportError where onnx or onnxscript is
    missing; ValueError for an opset_version below 20.
    """
    opset = options.pop("opset_version", OPSET)
    if opset < OPSET:
        raise ValueError(f"export_onnx: opset_version must be at least {OPSET}, got {opset}")
    options = {"verbose": False, **options}
    table = {**translation_table(), **options.pop("custom_translation_table", {})}
    try:
        return torch.onnx.export(
            model,
            args,
            path,
            kwargs=None if kwargs is None else dict(kwargs),
            dynamic_shapes=dynamic_shapes,
            opset_version=opset,
            custom_translation_table=table,
            dynamo=True,
            **options,
        )
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, sizes.NotInOnnxError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise NotImplementedError(str(cause)) from error


__all__ = ["OPSET", "export_onnx", "translation_table"]
