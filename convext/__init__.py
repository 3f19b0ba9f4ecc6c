"""Convolution and pooling for PyTorch with kernels of its own: drop-in modules, algorithms by name, nothing hidden.

layer = convext.Conv2d(3, 64, 3, padding="same", stride=2)     # torch.nn.Conv2d, and a little more
convext.convert(model)                                           # swap the layers of a whole model
print(convext.explain(layer, image))                             # which algorithm runs, and why not the others
print(convext.summary(model, image))                             # what every layer costs, sees, runs and takes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  the operators live in torch's registry, its libraries must be loaded first

from convext import (
    _C,  # noqa: F401  loads the operators
    functional,
    nn,
)
from convext.choice import (
    Explanation,
    Verdict,
    algorithms,
    clear_packed_weights,
    explain,
    packed_weight_bytes,
    set_winograd,
    winograd,
)
from convext.convert import ConversionReport, convert, revert
from convext.nn import *  # noqa: F403
from convext.nn import __all__ as _layers
from convext.profiling import Profile, profile
from convext.tuning import (
    TuningReport,
    clear_tuning,
    load_tuning,
    save_tuning,
    set_workspace_limit,
    tune,
    workspace_limit,
)

if TYPE_CHECKING:
    from convext import analysis, distributed, onnx, viz  # noqa: F401
    from convext.analysis import summary
    from convext.onnx import export_onnx

__version__ = "0.1.0"

__all__ = [
    "ConversionReport",
    "Explanation",
    "Profile",
    "TuningReport",
    "Verdict",
    "algorithms",
    "analysis",
    "clear_packed_weights",
    "clear_tuning",
    "convert",
    "explain",
    "export_onnx",
    "functional",
    "load_tuning",
    "nn",
    "onnx",
    "packed_weight_bytes",
    "profile",
    "revert",
    "save_tuning",
    "set_winograd",
    "set_workspace_limit",
    "summary",
    "tune",
    "viz",
    "winograd",
    "workspace_limit",
    *_layers,
]


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for: most programs never do."""
    homes = {"summary": "analysis", "export_onnx": "onnx"}
    if name in ("analysis", "distributed", "onnx", "viz", *homes):
        import importlib

        found = importlib.import_module(f"convext.{homes.get(name, name)}")
        return getattr(found, name) if name in homes else found
    raise AttributeError(f"module 'convext' has no attribute {name!r}")
