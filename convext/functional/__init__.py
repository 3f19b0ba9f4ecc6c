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
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_options",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "pool_window",
    "transposed_output_size",
]
