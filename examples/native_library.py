"""The operators as a shared library without Python: python -m examples.native_library [libconvext.so]

The extension module convext._C has the operators, and a door to Python beside them. A program in C++ that runs a model
compiled ahead of time (AOTInductor) needs the operators alone: all objects of the build but those of plain calls from
Python (with their gradients and chains) and of programs that call modules, linked with libtorch. Such a program says

    dlopen("libconvext.so", RTLD_NOW | RTLD_GLOBAL);                       // registers torch.ops.convext.*
    torch::inductor::AOTIModelPackageLoader model("net.pt2");              // and finds them there
    std::vector<at::Tensor> outputs = model.run({image});

In Python, ``torch.ops.load_library`` takes either library, and convext itself is not needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
OF_PYTHON = (
    *(f"autograd_{part}.o" for part in ("conv", "normalisation", "pool")),
    *("bindings.o", "calls.o", "ops_chain.o", "program.o"),
)


def objects() -> list[str]:
    """Those of the tree's own build (make build) that know nothing of Python; none if it is not complete."""
    sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
    names = [f"{path.relative_to(ROOT).with_suffix('.o')}" for path in sources if f"{path.stem}.o" not in OF_PYTHON]
    found = [path for name in names for path in ROOT.glob(f"build/temp.*/{name}")]
    found += ROOT.glob("build/temp.*/csrc/cuda/*.o")  # where there are any
    return sorted(map(str, found)) if len(found) >= len(names) else []


def main(library: str = "build/libconvext.so") -> list[str]:
    """Links the library; the names in it that belong to Python: none."""
    if not objects():
        raise SystemExit("The library is linked from the objects of a build: make build")
    home = Path(torch.__file__).parent / "lib"
    cuda = ["-ltorch_cuda", "-lc10_cuda"] if torch.version.cuda is not None else []
    linked = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", *cuda, "-lc10", f"-Wl,-rpath,{home}"]
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-shared", "-fopenmp", *objects(), f"-L{home}", *linked, "-o", library], check=True)
    undefined = subprocess.run(["nm", "-D", "-u", library], check=True, capture_output=True, text=True).stdout
    of_python = [name for name in undefined.split() if name.startswith(("Py", "_Py", "THP"))]
    print(f"{library}: {Path(library).stat().st_size / 2**20:.0f} MiB, names of Python that it needs: {len(of_python)}")
    return of_python


if __name__ == "__main__":
    main(*sys.argv[1:])
