"""Understanding a convolutional network without guessing: sizes, fields, costs, matrices, symmetries.

output_size(224, 7, stride=2, padding=3)                   # (112,)
print(receptive_field(model, (1, 3, 224, 224)))            # size, jump, start, centre of every layer
print(count(model, (1, 3, 224, 224)))                      # parameters, multiply-adds, bytes, what winograd saves
convolution_matrix(weight, (8, 8), padding="same") @ x.flatten()   # the convolution, as a sparse matrix
equivariance_error(model, (1, 3, 64, 64), shift=1)         # 0: moves with its input
print(stack_vs_single(7, 3, channels=64))                  # three 3x3 for one 7x7
"""

from convext.analysis.algorithm_cost import AlgorithmCost, winograd_tile
from convext.analysis.cost import Count, CountRow, count
from convext.analysis.effective_field import EffectiveField, effective_receptive_field
from convext.analysis.equivariance import equivariance_error
from convext.analysis.matrix import convolution_matrix
from convext.analysis.receptive_field import FieldRow, ReceptiveField, receptive_field
from convext.analysis.sizes import output_size
from convext.analysis.stacks import StackComparison, stack_vs_single
from convext.analysis.summarise import Summary, SummaryRow, summary

__all__ = [
    "AlgorithmCost",
    "Count",
    "CountRow",
    "EffectiveField",
    "FieldRow",
    "ReceptiveField",
    "StackComparison",
    "Summary",
    "SummaryRow",
    "convolution_matrix",
    "count",
    "effective_receptive_field",
    "equivariance_error",
    "output_size",
    "receptive_field",
    "stack_vs_single",
    "summary",
    "winograd_tile",
]
