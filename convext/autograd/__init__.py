"""Gradients: each operator as a ``torch.autograd.Function``, of any order, forward and reverse, under vmap too.

A convolution ``y = F(x, w)`` is linear in each operand, and so are its two gradients ``dx = I(dy, w)`` and
``dw = W(dy, x)``. The derivative of each of the three is written with the other two:

    F(x, w):   dx = I(dy, w)    dw = W(dy, x)
    I(dy, w):  ddy = F(g, w)    dw = W(dy, g)      where g is the gradient arriving at dx
    W(dy, x):  ddy = F(x, g)    dx = I(dy, g)      where g is the gradient arriving at dw

so three kernels give every order. Average pooling and its gradient are each other's derivatives; max pooling's gradient
moves values to the places that won, its derivative gathers them back.

Every operation exists twice. The plain Function serves eager mode and torch.compile: its ``forward`` takes ``ctx``,
which costs a third of the other form. The one derived from it, made by ``for_transforms_with``, serves torch.func and
forward mode: it has ``setup_context``, ``jvp`` and a batching rule, which Dynamo would refuse. Where no gradient is
asked for, the operator is called directly. What a Function saves is what its own backward reads, nothing more.
"""

from convext.autograd.convolution import (
    Conv,
    ConvActivated,
    ConvBackwardBias,
    ConvBackwardInput,
    ConvBackwardWeight,
    add_bias,
    before_activation,
    conv,
    conv_backward_bias,
    conv_backward_input,
    conv_backward_weight,
    tells_slope,
)
from convext.autograd.normalisation import BatchNorm, batch_norm_backward
from convext.autograd.other_pooling import (
    FractionalMaxPool,
    FractionalMaxPoolBackward,
    KMaxPool,
    LPPool,
    MaxUnpool,
    fractional_max_pool,
    fractional_max_pool_backward,
    k_max_pool,
    k_max_pool_backward,
    lp_pool,
    lp_pool_backward,
    max_unpool,
    max_unpool_backward,
)
from convext.autograd.pooling import (
    AvgPool,
    AvgPoolBackward,
    MaxPool,
    MaxPoolBackward,
    avg_pool,
    avg_pool_backward,
    gather_places,
    max_pool,
    max_pool_backward,
)

__all__ = [
    "AvgPool",
    "AvgPoolBackward",
    "BatchNorm",
    "Conv",
    "ConvActivated",
    "ConvBackwardBias",
    "ConvBackwardInput",
    "ConvBackwardWeight",
    "FractionalMaxPool",
    "FractionalMaxPoolBackward",
    "KMaxPool",
    "LPPool",
    "MaxPool",
    "MaxPoolBackward",
    "MaxUnpool",
    "add_bias",
    "avg_pool",
    "avg_pool_backward",
    "batch_norm_backward",
    "before_activation",
    "conv",
    "conv_backward_bias",
    "conv_backward_input",
    "conv_backward_weight",
    "fractional_max_pool",
    "fractional_max_pool_backward",
    "gather_places",
    "k_max_pool",
    "k_max_pool_backward",
    "lp_pool",
    "lp_pool_backward",
    "max_pool",
    "max_pool_backward",
    "max_unpool",
    "max_unpool_backward",
    "tells_slope",
]
