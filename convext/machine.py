"""What the machine does at best: the yardsticks by which layers are judged."""

from __future__ import annotations

import ctypes
import functools
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

COPY_BYTES = tuple(2**exponent for exponent in range(16, 29, 2))
"""Sizes of the copied tensor; a copy moves twice that."""
GEMM_SIZES = (192, 256, 384, 512, 768, 1024)
MIN_CALLS = 5
"""However short the time that is given."""


def _best_seconds(call: Callable[[], Any], budget: float) -> float:
    call()
    best, calls, now = math.inf, 0, time.perf_counter()
    stop = now + budget
    while now < stop or calls < MIN_CALLS:
        start = time.perf_counter()
        call()
        now, calls = time.perf_counter(), calls + 1
        best = min(best, now - start)
    return best


@functools.lru_cache(maxsize=8)
def compiled(source: Path) -> ctypes.CDLL | None:
    """A C file as a library, compiled for this machine once per process; None where that cannot be done."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{source.stem}.so"
        try:
            subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True, capture_output=True)
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError):
            return None


def _fma_gflops(threads: int, budget: float) -> float | None:
    """GFLOP/s of multiply-adds in registers (fma_peak.c) on ``threads`` threads; None where it cannot be compiled."""
    library = compiled(Path(__file__).with_name("fma_peak.c"))
    if library is None:
        return None
    chains, rounds = library.fma_rounds, 200_000
    chains.restype, chains.argtypes = ctypes.c_long, [ctypes.c_long, ctypes.POINTER(ctypes.c_float)]

    def work(_thread: int) -> int:
        return int(chains(rounds, ctypes.c_float(1.0)))  # ctypes lets other threads run meanwhile

    with ThreadPoolExecutor(threads) as pool:
        flops = rounds * sum(pool.map(work, range(threads)))
        return flops / _best_seconds(lambda: list(pool.map(work, range(threads))), budget) / 1e9


def _gemm_gflops(budget: float) -> float:
    best = 0.0
    for n in GEMM_SIZES:
        a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        call = functools.partial(torch.mm, a, b, out=out)
        seconds = _best_seconds(call, budget / len(GEMM_SIZES))
        best = max(best, 2 * n**3 / seconds / 1e9)
    return best


@dataclass(frozen=True)
class Peaks:
    """What the machine does at best with a number of threads: the yardsticks of every share in a result."""

    threads: int
    gflops: float
    """Of multiply-adds in registers; without a working C compiler, of torch.mm."""
    how: str
    gemm_gflops: float
    """The fastest float32 torch.mm of square matrices that fit in cache."""
    copy_gbs: dict[int, float]
    """Bytes moved (read and written) by a copy -> GB/s."""

    @staticmethod
    def measure(threads: int, budget: float = 1.5, copy_bytes: Sequence[int] = COPY_BYTES) -> Peaks:
        """With torch set to ``threads`` threads; takes about ``budget`` seconds, and twice ``copy_bytes`` of memory."""
        gemm, fma = _gemm_gflops(budget / 3), _fma_gflops(threads, budget / 3)
        copies = {}
        for size in copy_bytes:
            source, target = torch.ones(size // 4), torch.zeros(size // 4)
            call = functools.partial(target.copy_, source)
            copies[2 * size] = 2 * size / _best_seconds(call, budget / 3 / len(copy_bytes)) / 1e9
        how = "float32 multiply-adds in registers" if fma else "the fastest torch.mm (no working C compiler was found)"
        return Peaks(threads, fma or gemm, how, gemm, copies)

    def copy_at(self, bytes_moved: int) -> float:
        """GB/s of the measured copy whose size is nearest to ``bytes_moved``."""
        size = min(self.copy_gbs, key=lambda n: abs(math.log(n / max(bytes_moved, 1))))
        return self.copy_gbs[size]

    def least_seconds(self, multiply_adds: int, bytes_moved: int) -> tuple[str, float]:
        """Which peak bounds a layer (``"fma"`` or ``"copy"``), and the seconds it takes there."""
        arithmetic = 2 * multiply_adds / (self.gflops * 1e9)
        memory = bytes_moved / (self.copy_at(bytes_moved) * 1e9)
        return ("fma", arithmetic) if arithmetic >= memory else ("copy", memory)

    def as_json(self) -> dict[str, Any]:
        return {
            "threads": self.threads,
            "fma_gflops": round(self.gflops, 1),
            "fma": self.how,
            "gemm_gflops": round(self.gemm_gflops, 1),
            "gemm": f"float32 torch.mm, the fastest of {GEMM_SIZES} square",
            "copy_gbs": {str(size): round(rate, 1) for size, rate in self.copy_gbs.items()},
            "copy": "torch copy_, GB/s by bytes moved, read and written",
        }


@functools.lru_cache(maxsize=8)
def peaks_here(threads: int) -> Peaks:
    """Measured once per process and number of threads, within a second; tensors up to 64 MB are copied."""
    return Peaks.measure(threads, 0.6, COPY_BYTES[:-1])
