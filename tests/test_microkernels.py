"""The compiled microkernels are what their source means: wide fused multiply-adds, sums that stay in registers.

The compiler turns one source into three instruction sets; a change of source or compiler that splits a vector, spills
an accumulator or loses the fused multiply-add would cost half the speed and fail no other test. So the machine code is
read. Numbers: a tile gemm_tile<element, ROWS, VECTORS, ...> has ROWS x VECTORS products in each step of its loop.
"""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

import pytest

from convext import _C
from tests import disassembly

LIBRARY = Path(_C.__file__)
REGISTERS = {"avx512": "zmm", "avx2": "ymm", "baseline": "xmm"}
MICROKERNEL = r"convext::cpu::(?P<isa>\w+)::.*\bgemm_tile<(?P<element>float|double), (?P<rows>\d+), (?P<vectors>\d+)"

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the machine code of x86-64"),
    pytest.mark.skipif(not (shutil.which("objdump") and shutil.which("nm")), reason="objdump and nm are not installed"),
]


def tiles(isa: str, element: str) -> list[tuple[str, int, disassembly.Loop]]:
    """Name, products a step, and the loop of every tile of the instruction set and element type."""
    found = []
    for symbol in disassembly.symbols(LIBRARY, MICROKERNEL):
        match = re.search(MICROKERNEL, symbol.name)
        assert match is not None
        if (match["isa"], match["element"]) == (isa, element) and "[clone .cold" not in symbol.name:
            loops = disassembly.innermost_loops(disassembly.instructions(LIBRARY, symbol))
            products = int(match["rows"]) * int(match["vectors"])
            hot = max(loops, key=lambda loop: products_of(loop, isa, element), default=None)
            assert hot is not None, f"{symbol.name} has no loop"
            found.append((symbol.name, products, hot))
    return found


def products_of(loop: disassembly.Loop, isa: str, element: str) -> int:
    letter, register = element[0].replace("f", "s"), REGISTERS[isa]
    if isa == "baseline":
        return min(loop.count(f"mulp{letter}", register), loop.count(f"addp{letter}", register))
    return loop.multiply_adds(letter, register)


@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("isa", REGISTERS)
def test_gemm_tiles_multiply_and_add_whole_vectors(isa: str, element: str) -> None:
    found = tiles(isa, element)
    assert found, "no tile has a symbol: was the extension stripped, or the template renamed?"
    for name, products, loop in found:
        made = products_of(loop, isa, element)
        assert made > 0, name
        assert made % products == 0, f"{name}: {made} products of whole vectors in a loop of steps of {products}"


@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("isa", REGISTERS)
def test_gemm_tiles_keep_their_sums_in_registers(isa: str, element: str) -> None:
    for name, _, loop in tiles(isa, element):
        spills = [f"{i.mnemonic} {i.operands}" for i in loop.stack_accesses]
        assert not spills, f"{name}: {len(spills)} accesses to the stack in a loop of {len(loop.body)}: {spills[:4]}"
