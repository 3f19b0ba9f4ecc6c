"""Batch normalisation layers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from convext import functional


class _BatchNormLayer(nn.modules.batchnorm._BatchNorm):
    """What the batch normalisation layers share. Mixed in before the torch.nn namesake."""

    extras: ClassVar[dict[str, Any]] = {}

    def forward(self, input: Tensor) -> Tensor:
        return self.forward_activated(input, "none", 0.0, 0.0)

    def forward_activated(self, input: Tensor, activation: str, a: float, b: float) -> Tensor:
        """``activation(self(input))``, hooks apart; activations as for :func:`convext.functional.batch_norm`."""
        traced = not isinstance(input, Tensor)  # symbolically: neither checked nor counted
        if not traced:
            self._check_input_dim(input)  # type: ignore[no-untyped-call]
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None and not traced:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average of all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        follows = not self.training or self.track_running_stats
        running_mean, running_var = (self.running_mean, self.running_var) if follows else (None, None)
        training = self.training or (self.running_mean is None and self.running_var is None)
        return functional.batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            activation=activation,
            a=a,
            b=b,
        )


class BatchNorm1d(_BatchNormLayer, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` with convext's kernels. Shapes: (n, c, w) or (n, c), the same out."""


class BatchNorm2d(_BatchNormLayer, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` with convext's kernels. Shapes: (n, c, h, w), the same out."""


class BatchNorm3d(_BatchNormLayer, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` with convext's kernels. Shapes: (n, c, d, h, w), the same out."""
