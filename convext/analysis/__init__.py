"""Understanding a convolutional network without guessing: sizes, fields, costs, matrices, symmetries.

output_size(224, 7, stride=2, padding=3)                   # (112,)
print(receptive_field(model, (1, 3, 224, 224)))            # size, jump, start, centre of every layer
print(count(model, (1, 3, 224, 224)))                      # parameters, multiply-adds, bytes, what winograd saves
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
    "count",
    "effective_receptive_field",
    "output_size",
    "receptive_field",
    "stack_vs_single",
    "winograd_tile",
]
