"""``python -m convext info``: what this build is and what it runs on; ``summary``: what a model costs and runs."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Sequence

import torch

import convext
from convext import _C
from convext.choice import algorithms


def info() -> str:
    """Build, instruction set, threads, CUDA and the tables of algorithms, as text."""
    cuda = "kernels built" if _C.built_with_cuda() else "built without CUDA kernels"
    if _C.built_with_cuda():
        cuda += f", device: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no device found"
    forced = f" (CONVEXT_ISA={os.environ['CONVEXT_ISA']})" if "CONVEXT_ISA" in os.environ else ""
    rows = {
        "convext": f"{convext.__version__}, {_C.__file__}",
        "compiler": _C.compiler(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "instruction set": f"{_C.active_isa()}{forced} of {', '.join(_C.available_isas())}",
        "threads": str(_C.max_threads()),
        "cuda": cuda,
    }
    for device in ("cpu", "cuda"):
        for label, op in (("convolution", "conv2d"), ("pooling", "max_pool2d")):
            rows[f"{label}, {device}"] = ", ".join(algorithms(op, device)) or "none"
    width = max(map(len, rows))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows.items())


def _sizes(text: str) -> list[int]:
    """3x224x224 or 3,224,224: channels and places of one image."""
    try:
        sizes = [int(part) for part in text.replace(",", "x").split("x")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes above 0 like 3x224x224, got {text!r}")
    return sizes


def load_model(name: str) -> torch.nn.Module:
    """The model that ``package.module:callable`` returns, called without arguments; modules of the working directory
    can be named. Raises ValueError, saying what is missing."""
    module, separator, attribute = name.partition(":")
    if not (module and separator and attribute):
        raise ValueError(f"model must be given as package.module:callable, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model {name!r} cannot be found: {error}") from None
    model = found if isinstance(found, torch.nn.Module) else found() if callable(found) else found
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model {name!r} must be or return a torch.nn.Module, got {type(model).__name__}")
    return model


def summary(options: argparse.Namespace) -> str:
    """The table or JSON that the options ask for. Raises ValueError for a model that cannot be found."""
    dtype = getattr(torch, options.dtype)
    model = load_model(options.model).to(dtype)
    image = torch.randn(options.batch, *options.input).to(dtype)
    if options.channels_last:
        if image.dim() not in (4, 5):
            raise ValueError(f"--channels-last needs an input of 2 or 3 dimensions of places, got {options.input}")
        memory_format = torch.channels_last if image.dim() == 4 else torch.channels_last_3d
        image, model = image.contiguous(memory_format=memory_format), model.to(memory_format=memory_format)  # type: ignore[call-overload]
    if options.convert:
        convext.convert(model)
    result = convext.summary(model, image, measure=options.measure, budget=options.budget)
    return result.to_json(indent=1) if options.json else str(result)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m convext", description="convext from the command line")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="build, instruction set, threads, CUDA, algorithms")
    table = commands.add_parser("summary", help="a model layer by layer: costs, fields, algorithms, times")
    table.add_argument("model", help="package.module:callable, which returns the model")
    table.add_argument("--input", type=_sizes, default=[3, 224, 224], help="of one image, 3x224x224 by default")
    table.add_argument("--batch", type=int, default=1, help="images, 1 by default")
    table.add_argument("--dtype", choices=("float32", "float64", "float16", "bfloat16"), default="float32")
    table.add_argument("--channels-last", action="store_true", help="input and weights in that memory format")
    table.add_argument("--convert", action="store_true", help="after convext.convert")
    table.add_argument("--no-measure", dest="measure", action="store_false", help="no times")
    table.add_argument("--budget", type=float, default=2.0, help="seconds to measure, 2 by default")
    table.add_argument("--json", action="store_true", help="JSON instead of a table")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "info":
        print(info())
        return
    try:
        print(summary(options))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
