"""Builds convext._C: the C++ kernels always, the CUDA kernels where torch has CUDA and nvcc is found.

CONVEXT_CUDA=1 demands the CUDA kernels, CONVEXT_CUDA=0 leaves them out. What was decided, and why, is printed.
CONVEXT_ONLY_ISA=baseline, avx2 or avx512 builds the kernels of that instruction set alone, in a third of the time: for
work on a kernel, never to give away.
CONVEXT_EMULATE_AVX512=1 builds, for tests, the AVX-512 kernels alone in a form that any machine with AVX2 can run
(make test-emulated). What lies above csrc/cpu knows no instruction set: its objects are taken from the ordinary build,
where that has no CUDA kernels. CONVEXT_WITHOUT_FLOAT16=1 leaves that type out.
CONVEXT_SANITIZE=address (with undefined behaviour) or thread builds for the sanitizers of that name (make sanitize).
"""

import os
import shutil
from glob import glob

import torch
from setuptools import setup
from torch.utils import cpp_extension

# Without -fopenmp at::parallel_for is silently serial; the library is the one torch has loaded already.
# -O2 and no debug information: kernels spell out their vectors and unrolling, -O3 was no faster and took twice as long.
# -ffp-contract=fast lets a*b+c become one instruction also under -std=c++NN. The switched-off warnings are GCC 12's
# false alarms inside its own vector headers. torch 2.11 would choose C++17.
CXX_FLAGS = [
    "-std=c++20",
    "-O2",
    "-g0",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-Wno-unused-function",
    "-Wno-unused-parameter",
]
ISA_FLAGS = {
    "": [],
    "baseline": ["-DCONVEXT_ONLY_ISA=0"],
    "avx2": ["-DCONVEXT_ONLY_ISA=2"],
    "avx512": ["-DCONVEXT_ONLY_ISA=3"],
}
# -O1 compiles in half the time, and the kernels' loops are unrolled there too.
EMULATED_FLAGS = [
    "-O1",
    "-g0",
    "-DCONVEXT_EMULATE_AVX512",
    *ISA_FLAGS["avx512"],
    f"-I{os.path.abspath('tests/emulator/avx512')}",
]
TRACEABLE = ["-O1", "-g1", "-fno-omit-frame-pointer"]
# vptr would need the type information of torch's classes; what pointers point to is the address sanitizer's to find,
# unaligned vectors the processor's, in much less of the compiler's time. Barriers of OpenMP are invisible to the thread
# sanitizer.
SANITIZERS = {
    "": [],
    "address": [
        "-fsanitize=address,undefined",
        "-fno-sanitize=vptr,null,object-size,pointer-overflow,alignment",
        "-fno-sanitize-recover=undefined",
        *TRACEABLE,
    ],
    "thread": ["-fsanitize=thread", "-DCONVEXT_STD_THREADS", *TRACEABLE],
}
# 9.0a is the code of csrc/cuda/hopper.cuh, which no other device runs; PTX of it would run on none to come.
CUDA_ARCHITECTURES = "7.5;8.0;9.0+PTX;9.0a"


def flags_for(variable: str, flags: dict[str, list[str]]) -> list[str]:
    """The flags of what the environment names; nothing is the name of the ordinary build."""
    wish = os.environ.get(variable, "")
    if wish not in flags:
        raise SystemExit(f"{variable} must be one of {', '.join(filter(None, flags))}, got {wish!r}")
    return flags[wish]


def wish_for(name: str) -> str:
    """What the environment asks for: "0", "1" or nothing."""
    wish = os.environ.get(name, "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"{name} must be 0 or 1, got {wish!r}")
    return wish


def decide_cuda() -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and why."""
    wish = wish_for("CONVEXT_CUDA")
    if wish == "0":
        return False, "CONVEXT_CUDA=0"
    if wish_for("CONVEXT_EMULATE_AVX512") == "1":
        return False, "CONVEXT_EMULATE_AVX512=1"
    missing = []
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is built without CUDA")
    if not (cpp_extension.CUDA_HOME and shutil.which("nvcc", path=os.path.join(cpp_extension.CUDA_HOME, "bin"))):
        missing.append("nvcc is not found (set CUDA_HOME or put nvcc on PATH)")
    if not missing:
        return True, f"torch has CUDA {torch.version.cuda} and nvcc is in {cpp_extension.CUDA_HOME}"
    if wish == "1":
        raise SystemExit("CONVEXT_CUDA=1, but " + " and ".join(missing))
    return False, " and ".join(missing)


def extension() -> object:
    with_cuda, why = decide_cuda()
    print(f"convext: building {'with' if with_cuda else 'without'} CUDA kernels: {why}", flush=True)
    above, sources = sorted(glob("csrc/*.cpp")), sorted(glob("csrc/cpu/*.cpp"))
    depends = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inl", recursive=True))
    macros: list[tuple[str, str | None]] = [("AT_PER_OPERATOR_HEADERS", None)]  # torch's headers without all of its ops
    emulate = wish_for("CONVEXT_EMULATE_AVX512") == "1"
    only = [] if emulate else flags_for("CONVEXT_ONLY_ISA", ISA_FLAGS)
    sanitize = flags_for("CONVEXT_SANITIZE", SANITIZERS)
    built = [found for source in above for found in glob(f"build/temp.*/{source.removesuffix('.cpp')}.o")]
    if not emulate or sanitize or torch.version.cuda is not None or len(built) != len(above):
        sources, built = above + sources, []
    depends += built
    few = ["-DCONVEXT_WITHOUT_FLOAT16"] * (emulate and wish_for("CONVEXT_WITHOUT_FLOAT16") == "1")
    flags = {"cxx": CXX_FLAGS + only + EMULATED_FLAGS * emulate + few + sanitize}
    make = cpp_extension.CppExtension
    if with_cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        sources += sorted(glob("csrc/cuda/*.cu") + glob("csrc/cuda/*.cpp"))
        depends += sorted(glob("csrc/cuda/*.cuh"))
        macros.append(("CONVEXT_WITH_CUDA", None))
        flags["nvcc"] = ["-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-Wno-psabi"]
        make = cpp_extension.CUDAExtension
    return make(
        "convext._C",
        sources,
        depends=depends,
        define_macros=macros,
        extra_compile_args=flags,
        extra_objects=built,
        extra_link_args=["-fopenmp", *sanitize],
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)})
