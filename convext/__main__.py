"""``python -m convext info``: what this build is and what it runs on."""

from __future__ import annotations

import argparse
import os
import platform

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m convext", description="convext from the command line")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="build, instruction set, threads, CUDA, algorithms")
    parser.parse_args()
    print(info())


if __name__ == "__main__":
    main()
