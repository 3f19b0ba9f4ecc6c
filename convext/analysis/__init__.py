"""Understanding a convolutional network without guessing: sizes, fields, costs, matrices, symmetries.

output_size(224, 7, stride=2, padding=3)                   # (112,)
print(receptive_field(model, (1, 3, 224, 224)))            # size, jump, start, centre of every layer
print(count(model, (1, 3, 224, 224)))                      # parameters, multiply-adds, bytes, what winograd saves
convolution_matrix(weight, (8, 8), padding="same") @ x.flatten()   # the convolution, as a sparse matrix
equivariance_error(model, (1, 3, 64, 64), shift=1)         # 0: moves with its input
print(stack_vs_single(7, 3, channels=64))                  # three 3x3 for one 7x7
"""

from convext.analysis.cost import (
    AlgorithmCost,
    Count,
    CountRow,
    StackComparison,
    count,
    stack_vs_single,
    winograd_tile,
)
from convext.analysis.equivariance import equivariance_error
from convext.analysis.matrix import convolution_matrix
from convext.analysis.receptive_field import (
    EffectiveField,
    FieldRow,
    ReceptiveField,
    effective_receptive_field,
    receptive_field,
)
from convext.analysis.sizes import output_size

__all__ = [
    "AlgorithmCost",
    "Count",
    "CountRow",
    "EffectiveField",
    "FieldRow",
    "ReceptiveField",
    "StackComparison",
    "convolution_matrix",
    "count",
    "effective_receptive_field",
    "equivariance_error",
    "output_size",
    "receptive_field",
    "stack_vs_single",
    "winograd_tile",
]
