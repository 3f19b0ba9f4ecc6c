"""Reads the machine code of the built extension: its functions, their innermost loops, what such a loop holds.

objdump and nm (binutils) do the work; the names are those of the symbol table, demangled.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^\s*([0-9a-f]+):\t(\S+)\s*([^#<]*)")
_JUMP = re.compile(r"^j\w+$")
_STACK = re.compile(r"\(%rsp\b")
_FRAME = re.compile(r"\(%rbp\b")
_VECTOR = re.compile(r"%[xyz]mm\d")


@dataclass(frozen=True)
class Symbol:
    name: str
    """Demangled."""
    start: int
    size: int


@dataclass(frozen=True)
class Instruction:
    address: int
    mnemonic: str
    operands: str
    """AT&T: sources first, the target last."""

    @property
    def target(self) -> int | None:
        """Where a jump goes; None for anything else."""
        return int(self.operands.split()[0], 16) if _JUMP.match(self.mnemonic) and "*" not in self.operands else None


@dataclass(frozen=True)
class Loop:
    """A loop without a loop inside, first to last instruction."""

    body: tuple[Instruction, ...]
    framed: bool
    """Whether %rbp points to the function's frame."""

    def multiply_adds(self, element: str, register: str) -> int:
        """How many fused ones of packed ``element`` ("s" float, "d" double) on ``register`` (zmm, ymm, xmm)."""
        wanted = re.compile(rf"v?fn?madd\d+p{element}$")
        return sum(bool(wanted.match(i.mnemonic)) and f"%{register}" in i.operands for i in self.body)

    def count(self, mnemonic: str, register: str) -> int:
        return sum(i.mnemonic.removeprefix("v") == mnemonic and f"%{register}" in i.operands for i in self.body)

    @property
    def spills(self) -> list[Instruction]:
        """Vectors read from or written to the stack: they found no register."""
        return [i for i in self.body if self._on_stack(i) and _VECTOR.search(i.operands)]

    @property
    def scalar_stores(self) -> list[Instruction]:
        """Counters and addresses written to the stack. (One only loaded from there costs a load and no more.)"""
        return [i for i in self.body if self._on_stack(i) and _is_store(i) and not _VECTOR.search(i.operands)]

    def _on_stack(self, i: Instruction) -> bool:
        return i.mnemonic != "lea" and bool(_STACK.search(i.operands) or (self.framed and _FRAME.search(i.operands)))


def _is_store(i: Instruction) -> bool:
    return i.operands.endswith(")") and not i.mnemonic.startswith(("cmp", "test", "jmp", "call"))


def symbols(library: Path, pattern: str) -> list[Symbol]:
    """The functions whose demangled name matches, in the order of their names."""
    answer = subprocess.run(["nm", "-C", "-S", library], capture_output=True, text=True, check=True).stdout
    found = []
    for line in answer.splitlines():
        parts = line.split(" ", 3)
        if len(parts) == 4 and parts[2] in "tTwW" and re.search(pattern, parts[3]):
            found.append(Symbol(parts[3], int(parts[0], 16), int(parts[1], 16)))
    return sorted(found, key=lambda symbol: symbol.name)


def instructions(library: Path, symbol: Symbol) -> list[Instruction]:
    bounds = [f"--start-address={symbol.start}", f"--stop-address={symbol.start + symbol.size}"]
    command = ["objdump", "-d", "-w", "--no-show-raw-insn", *bounds, library]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    matches = map(_LINE.match, answer.splitlines())
    return [Instruction(int(m[1], 16), m[2], m[3].strip()) for m in matches if m]


def innermost_loops(code: list[Instruction]) -> Iterator[Loop]:
    """Each backward jump closes a loop; of nested ones the innermost."""
    framed = any(i.mnemonic == "mov" and i.operands == "%rsp,%rbp" for i in code)
    first = code[0].address if code else 0
    spans = [(t, i.address) for i in code if (t := i.target) is not None and first <= t <= i.address]
    for start, end in spans:
        if not any(start <= a and b <= end for a, b in spans if (a, b) != (start, end)):
            yield Loop(tuple(i for i in code if start <= i.address <= end), framed)
