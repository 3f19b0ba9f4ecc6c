"""Convolution and pooling with the signatures of ``torch.nn.functional``, and a little more.

Besides torch's arguments every convolution takes ``padding_mode=`` (``"zeros"``, ``"reflect"``, ``"replicate"``,
``"circular"``, ``"symmetric"``), ``flip_kernel=`` (true convolution instead of cross-correlation) and ``algorithm=``
(``"auto"`` or a name from :func:`convext.algorithms`); every pooling takes ``algorithm=``, average pooling also
``dilation=``. ``padding`` has the forms of :mod:`convext.padding`. Shapes: input ``(n, c, *places)`` or unbatched
``(c, *places)``, weight ``(k, c / groups, *kernel)``, output ``(n, k, *places)`` with

    places_out = floor((places + before + after - dilation * (kernel - 1) - 1) / stride) + 1

Errors are torch's: RuntimeError for sizes that do not fit together, TypeError for arguments of a wrong type; ValueError
for an unknown algorithm, NotImplementedError where the named algorithm cannot do the call.
"""

from convext.functional.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    adaptive_window,
    global_avg_pool,
    global_max_pool,
)
from convext.functional.convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_options,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    transposed_output_size,
)
from convext.functional.fused import activate, channel_scale, conv_fused
from convext.functional.normalisation import batch_norm
from convext.functional.other_pooling import (
    fractional_max_pool2d,
    fractional_max_pool3d,
    k_max_pool,
    k_max_pool1d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from convext.functional.pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    pool_window,
)

__all__ = [
    "activate",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "adaptive_window",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "channel_scale",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_fused",
    "conv_options",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "fractional_max_pool2d",
    "fractional_max_pool3d",
    "global_avg_pool",
    "global_max_pool",
    "k_max_pool",
    "k_max_pool1d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "pool_window",
    "transposed_output_size",
]
