"""Convolution and pooling for PyTorch with kernels of its own: drop-in modules, algorithms by name, nothing hidden.

layer = convext.Conv2d(3, 64, 3, padding="same", stride=2)     # torch.nn.Conv2d, and a little more
convext.convert(model)                                           # swap the layers of a whole model
print(convext.explain(layer, image))                             # which algorithm runs, and why not the others
print(convext.summary(model, image))                             # what every layer costs, sees, runs and takes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # the operators live in torch's registry, its libraries must be loaded first

try:
    from convext import _C  # noqa: F401  loads the operators
except ImportError as error:
    raise ImportError(
        f"convext's kernels are not built, or not for torch {torch.__version__} and this Python (a wheel holds for the "
        f"minor version of torch that it was built against): {error}"
    ) from error
from convext import functional, nn
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

if TYPE_CHECKING:
    from convext import analysis, tuning, viz
    from convext.analysis import summary
    from convext.tuning import (
        TuningReport,
        clear_tuning,
        load_tuning,
        save_tuning,
        set_workspace_limit,
        tune,
        workspace_limit,
    )

__version__ = "0.1.0"  # pyproject.toml reads it here

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
    "functional",
    "load_tuning",
    "nn",
    "packed_weight_bytes",
    "profile",
    "revert",
    "save_tuning",
    "set_winograd",
    "set_workspace_limit",
    "summary",
    "tune",
    "tuning",
    "viz",
    "winograd",
    "workspace_limit",
    *_layers,
]


# What is imported when it is first asked for, most programs never do: the module that has each name. None: it is one.
_LATER = {
    "analysis": None,
    "tuning": None,
    "viz": None,
    "summary": "analysis",
    **dict.fromkeys(("TuningReport", "clear_tuning", "load_tuning", "save_tuning", "tune"), "tuning"),
    **dict.fromkeys(("set_workspace_limit", "workspace_limit"), "tuning"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'convext' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"convext.{_LATER[name] or name}")
    found = getattr(module, name) if _LATER[name] else module
    globals()[name] = found
    return found
