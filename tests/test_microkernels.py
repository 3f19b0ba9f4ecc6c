"""The compiled microkernels are what their source means: wide fused multiply-adds, sums that stay in registers.

The compiler turns one source into three instruction sets; a change of source or compiler that splits a vector, spills
an accumulator or loses the fused multiply-add would cost half the speed and fail no other test. So the machine code is
read. Numbers: a tile gemm_tile<element, ROWS, VECTORS, ...> or outer_tile<...> has ROWS x VECTORS products in each step
of its loop; baseline has no fused ones, there a multiplication and an addition count. Tiles of pairs of bfloat16 have
twice as many, two to a vdpbf16ps.
"""

from __future__ import annotations

import functools
import itertools
import platform
import re
import shutil
from pathlib import Path

import pytest

from convext import _C
from tests import disassembly

LIBRARY = Path(_C.__file__)
REGISTERS = {"avx512": "zmm", "avx2": "ymm", "baseline": "xmm"}
GEMMS = [*((isa, element) for isa in REGISTERS for element in ("float", "double")), ("avx512_bf16", "BFloat16Pair")]
TILE = (
    r"\b(?:gemm|outer)_tile<(?:convext::cpu::)?(?P<element>float|double|BFloat16Pair), (?P<rows>\d+), (?P<vectors>\d+)"
)
MICROKERNEL = rf"convext::cpu::(?P<isa>\w+)::.*{TILE}"

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the machine code of x86-64"),
    pytest.mark.skipif(not (shutil.which("objdump") and shutil.which("nm")), reason="objdump and nm are not installed"),
]


@functools.cache
def tiles(isa: str, element: str) -> list[tuple[str, int, disassembly.Loop]]:
    """Name, products a step, and the loop of every tile of the instruction set and element type."""
    found = []
    for symbol in disassembly.symbols(LIBRARY, MICROKERNEL):
        match = re.search(MICROKERNEL, symbol.name)
        assert match is not None
        if (match["isa"], match["element"]) == (isa, element) and "[clone .cold" not in symbol.name:
            code = disassembly.instructions(LIBRARY, symbol)
            if code[0].mnemonic == "jmp":
                continue  # the compiler found this tile's code to be another's
            loops = disassembly.innermost_loops(code)
            products = int(match["rows"]) * int(match["vectors"])
            hot = max(loops, key=lambda loop: products_of(loop, isa, element), default=None)
            assert hot is not None, f"{symbol.name} has no loop"
            found.append((symbol.name, products, hot))
    return found


def products_of(loop: disassembly.Loop, isa: str, element: str) -> int:
    if element == "BFloat16Pair":
        return loop.count("dpbf16ps", "zmm")
    letter, register = element[0].replace("f", "s"), REGISTERS[isa]
    if isa == "baseline":
        return min(loop.count(f"mulp{letter}", register), loop.count(f"addp{letter}", register))
    return loop.multiply_adds(letter, register)


@pytest.mark.parametrize(("isa", "element"), GEMMS)
def test_gemm_tiles_multiply_and_add_whole_vectors(isa: str, element: str) -> None:
    found = tiles(isa, element)
    assert found, "no tile has a symbol: was the extension stripped, or the template renamed?"
    for name, products, loop in found:
        made = products_of(loop, isa, element)
        assert made > 0, name
        assert made % products == 0, f"{name}: {made} products of whole vectors in a loop of steps of {products}"


@pytest.mark.parametrize(("isa", "element"), GEMMS)
def test_gemm_tiles_keep_their_sums_in_registers(isa: str, element: str) -> None:
    for name, _, loop in tiles(isa, element):
        check_no_spills(name, loop)
        assert not loop.scalar_stores, f"{name}: {loop.scalar_stores[:4]}"


def check_no_spills(name: str, loop: disassembly.Loop) -> None:
    spills = [f"{i.mnemonic} {i.operands}" for i in loop.spills]
    assert not spills, f"{name}: {len(spills)} spills in a loop of {len(loop.body)} instructions: {spills[:4]}"


@pytest.mark.parametrize("kernel", ["rows_tile", "outs_tile", "lanes_tile", "dots_tile", "planes_tile", "group_tile"])
@pytest.mark.parametrize("isa", REGISTERS)
def test_direct_tiles_multiply_and_add_whole_vectors(isa: str, kernel: str) -> None:
    """Every tile of the direct convolution, on float or double, multiplies whole vectors; some are unrolled wholly."""
    checked = 0
    for symbol in disassembly.symbols(LIBRARY, rf"convext::cpu::{isa}::.*\b{kernel}<(float|double)"):
        if "[clone .cold" in symbol.name:  # what the compiler put out of the way
            continue
        element = "double" if f"{kernel}<double" in symbol.name else "float"
        all_of_it = disassembly.Loop(disassembly.instructions(LIBRARY, symbol), framed=False)
        assert products_of(all_of_it, isa, element) >= 1, symbol.name
        checked += 1
    assert checked > 0


@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("isa", REGISTERS)
def test_planes_tiles_keep_their_sums_in_registers(isa: str, element: str) -> None:
    checked = 0
    for symbol in disassembly.symbols(LIBRARY, rf"convext::cpu::{isa}::.*\bplanes_tile<{element}"):
        code = disassembly.instructions(LIBRARY, symbol)
        hot = max(disassembly.innermost_loops(code), key=lambda loop: products_of(loop, isa, element), default=None)
        if "[clone .cold" in symbol.name or hot is None:
            continue
        check_no_spills(symbol.name, hot)
        checked += 1
    assert checked > 0


@pytest.mark.parametrize("element", ["float", "double"])
def test_a_half_vector_of_columns_takes_half_a_register(element: str) -> None:
    """Where a's rows are not packed, tiles of AVX-512 have a second loop, whose last vector is half as wide."""
    checked = 0
    for symbol in disassembly.symbols(LIBRARY, rf"convext::cpu::avx512::.*\bgemm_tile<{element}, .*Rows\)[12]>"):
        match = re.search(TILE, symbol.name)
        assert match is not None
        rows, vectors = int(match["rows"]), int(match["vectors"])
        if "[clone .cold" in symbol.name or rows * vectors > 24:
            continue
        letter = element[0].replace("f", "s")
        loops = [
            loop
            for loop in disassembly.innermost_loops(disassembly.instructions(LIBRARY, symbol))
            if loop.multiply_adds(letter, "ymm") > 0
        ]
        assert loops, symbol.name
        for loop in loops:
            assert loop.multiply_adds(letter, "ymm") % rows == 0, symbol.name
            check_no_spills(symbol.name, loop)
        checked += 1
    assert checked > 0


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_depthwise_blocks_load_a_vector_once_for_all_outputs(isa: str) -> None:
    """Seven outputs, kStep apart, of kTaps taps see 6 kStep + kTaps vectors; a load for each product would take longer
    than the products do."""
    for step, taps in itertools.product((1, 2), (3, 5)):
        name = rf"convext::cpu::{isa}::.*\bdepthwise_rows<float, {step}, {taps}>"
        (symbol,) = (s for s in disassembly.symbols(LIBRARY, name) if "[clone .cold" not in s.name)
        loops = disassembly.innermost_loops(disassembly.instructions(LIBRARY, symbol))
        hot = max(loops, key=lambda loop: products_of(loop, isa, "float"))
        assert products_of(hot, isa, "float") == 7 * taps
        reads = [i for i in hot.body if "(" in i.operands and f"%{REGISTERS[isa][0]}mm" in i.operands]
        assert len(reads) <= 6 * step + taps + taps, f"{symbol.name}: {len(reads)} loads"


# The reader itself ---------------------------------------------------------------------------------------------------


def code(*lines: str) -> list[disassembly.Instruction]:
    """Instructions at addresses 0, 1, 2, ..."""
    split = [line.split(" ", 1) for line in lines]
    return [disassembly.Instruction(i, parts[0], parts[1] if len(parts) > 1 else "") for i, parts in enumerate(split)]


def test_reader_finds_innermost_loops_and_spills() -> None:
    inner = code(
        "xor %eax,%eax",
        "vmovaps 0x40(%rsp),%ymm1",  # outside of the inner loop
        "vfmadd231ps (%rax),%ymm0,%ymm1",
        "mov 0x8(%rsp),%rdx",  # an address
        "vmovaps %ymm1,0x20(%rsp)",
        "addq $1,0x10(%rsp)",
        "vbroadcastss 0x4(%rbp),%ymm2",  # without a frame %rbp is a register like others
        "jne 2 <f+0x2>",
        "jb 1 <f+0x1>",
        "ret",
    )
    (loop,) = disassembly.innermost_loops(inner)
    assert [i.address for i in loop.body] == [2, 3, 4, 5, 6, 7]
    assert [i.address for i in loop.spills] == [4]
    assert [i.address for i in loop.scalar_stores] == [5]
    assert loop.multiply_adds("s", "ymm") == 1
    assert loop.multiply_adds("d", "ymm") == loop.multiply_adds("s", "zmm") == 0
    (loop,) = disassembly.innermost_loops([*code("mov %rsp,%rbp"), *inner[1:]])
    assert [i.address for i in loop.spills] == [4, 6]
