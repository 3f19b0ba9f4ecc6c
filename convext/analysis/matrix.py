"""A convolution as the sparse matrix that it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convext import ops
from convext.arguments import Ints, expand, require_tensor
from convext.functional import conv_options
from convext.padding import Padding

_OP = "convolution_matrix"
_LAYOUTS = (torch.sparse_coo, torch.sparse_csr)


def _source(places: Tensor, size: int, mode: str) -> Tensor:
    """The input place that each padded place shows, -1 for a zero: csrc/geometry.h's padded_source, of whole tables."""
    before, after = places < 0, places >= size
    if mode == "reflect":
        return torch.where(before, -places, torch.where(after, 2 * (size - 1) - places, places))
    if mode == "replicate":
        return places.clamp(0, size - 1)
    if mode == "circular":
        return places % size
    if mode == "symmetric":
        return torch.where(before, -1 - places, torch.where(after, 2 * size - 1 - places, places))
    return torch.where(before | after, -1, places)


def _sources(
    sizes: Sequence[int],
    output: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    mode: str,
    device: torch.device,
) -> Tensor:
    """(output places, taps), both row-major: the input place that an output place sees through a tap, -1 for a zero."""
    spatial = len(sizes)
    flat = torch.zeros([1] * (2 * spatial), dtype=torch.int64, device=device)
    zero = torch.zeros_like(flat, dtype=torch.bool)
    for axis in range(spatial):
        starts = torch.arange(output[axis], device=device) * stride[axis] - pads[2 * axis]
        taps = torch.arange(kernel[axis], device=device) * dilation[axis]
        line = _source(starts.view(-1, 1) + taps, sizes[axis], mode)
        shape = [1] * (2 * spatial)
        shape[axis], shape[spatial + axis] = output[axis], kernel[axis]
        flat = flat * sizes[axis] + line.view(shape)
        zero = zero | (line < 0).view(shape)
    table = flat.masked_fill(zero, -1)
    return table.expand([*output, *kernel]).flatten(spatial).flatten(0, spatial - 1)


def convolution_matrix(
    weight: Tensor,
    input_size: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    layout: torch.layout = torch.sparse_coo,
) -> Tensor:
    """The sparse matrix C of a convolution: ``C @ x.flatten()`` is the convolution of one image x (c, *places),
    flattened, and ``C.T @ y.flatten()`` the transposed one of y (k, *places_out), the gradient of the input.

    weight (k, c / groups, *kernel) and ``input_size``, the places of the input (an int for all dimensions alike);
    ``stride``, ``padding`` (every form of :mod:`convext.padding`), ``dilation``, ``groups``, ``padding_mode`` and
    ``flip_kernel`` as in :func:`convext.functional.conv2d`, in 1 to 3 dimensions. C has shape (k * places_out,
    c * places), both row-major, and the weight's dtype and device; ``layout`` is torch.sparse_coo (coalesced, through
    which gradients flow to the weight) or torch.sparse_csr. An output place that sees an input place through several
    taps, as padding modes make it, has the sum. See Dumoulin and Visin 2016, section 4.1.

    Raises TypeError, ValueError or RuntimeError for arguments that do not fit, as the convolution itself would.
    """
    require_tensor(_OP, "weight", weight)
    spatial = weight.dim() - 2
    if spatial not in (1, 2, 3):
        raise ValueError(f"{_OP}: weight must have 3 to 5 dimensions, got size {list(weight.shape)}")
    if layout not in _LAYOUTS:
        raise ValueError(f"{_OP}: layout must be one of {_LAYOUTS}, got layout={layout}")
    sizes, kernel = expand(_OP, "input_size", input_size, spatial), list(weight.shape[2:])
    options = conv_options(_OP, sizes, kernel, stride, padding, dilation, groups, padding_mode, flip_kernel, "auto")
    strides, pads, dilations = options[:3]
    outputs, inputs = weight.shape[0], weight.shape[1] * groups
    shape = [1, inputs, *sizes]
    output = ops.conv_output_shape(shape, weight.shape, strides, pads, dilations, groups, padding_mode)[2:]

    sources = _sources(sizes, output, kernel, strides, pads, dilations, padding_mode, weight.device)
    place, tap = (sources >= 0).nonzero(as_tuple=True)
    column = sources[place, tap]
    places, columns = sources.shape[0], torch.Size(sizes).numel()
    k = torch.arange(outputs, device=weight.device).view(-1, 1, 1)
    c = torch.arange(weight.shape[1], device=weight.device).view(1, -1, 1)
    first = k // max(outputs // groups, 1) * weight.shape[1]  # the group's first input channel
    taps = weight.flip(tuple(range(2, 2 + spatial))) if flip_kernel else weight
    values = taps.flatten(2)[:, :, tap]
    rows = (k * places + place).expand(values.shape)
    cells = torch.stack([rows.flatten(), ((first + c) * columns + column).flatten()])
    matrix = torch.sparse_coo_tensor(
        cells, values.flatten(), (outputs * places, inputs * columns), check_invariants=False
    ).coalesce()
    return matrix if layout == torch.sparse_coo else matrix.to_sparse_csr()
