"""Makes C++ of what nvcc made of the kernels: one function for each entry of a PTX file, to run in the emulator.

python tests/emulator/ptx.py UNIT.cu UNIT.ptx OUT.cpp. The text of inline assembly is run in this way, and nvcc's own work: the order of
operands, what is in a descriptor, products that became fused. Instructions that no kernel has had are an error.

Source: PTX ISA 9.0, "Instruction Set".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "csrc/cuda"), str(Path(__file__).parent)]

from ptx_syntax import (  # noqa: E402
    ENTRY,
    MMA,
    OF_FLOATS,
    ORDERS,
    SPECIAL,
    TYPES,
    UNIFORM,
    WGMMA,
    Entry,
    Instruction,
    label,
    listed,
    parse,
    space_and_count,
)
from report import readable  # noqa: E402


@dataclass
class Translator:
    """Of one entry; ``places`` are registers that lie in arrays, since tensor cores work on them while threads go on."""

    entry: Entry
    places: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, tuple[str, int]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.handlers: dict[str, Callable[[Instruction], str]] = {
            "mov": self.move, "ld": self.load, "st": self.store, "setp": self.compare, "cvt": self.convert, "shfl": self.shuffle,
            "bar": self.barrier, "cp": self.copy, "wgmma": self.warpgroup, "shl": self.shift, "shr": self.shift, "selp": self.select,
            "bfi": self.insert, "ldmatrix": self.matrices, "mma": self.product, "cvta": self.address, "mapa": self.remote,
        }  # fmt: skip

    # ---- operands

    def register(self, name: str) -> str:
        return self.places.get(name) or name.lstrip("%").replace("%", "")

    def value(self, operand: str, ctype: str) -> str:
        """An operand as a number of a C++ type."""
        if operand in SPECIAL:
            return f"as<{ctype}>({SPECIAL[operand]})"
        if match := re.fullmatch(r"0[fd]([0-9A-F]+)", operand):
            size = "uint32_t" if len(match[1]) == 8 else "uint64_t"
            return f"as<{ctype}>({size}(0x{match[1]}ull))"
        if re.fullmatch(r"-?\d+", operand):
            return f"static_cast<{ctype}>({int(operand) & (1 << 64) - 1}ull)"
        if operand == self.entry.param:
            return "reinterpret_cast<uint64_t>(params)"
        if operand.endswith("memoryE"):
            return f"as<{ctype}>(simt::shared_address(simt::shared_memory()))"
        if not re.fullmatch(r"%?[a-z]+\d*", operand):
            raise ValueError(f"an operand that is not understood: {operand}")
        return f"as<{ctype}>({self.register(operand)})"

    def at(self, operand: str, space: str, size: str) -> str:
        """The host's address for ``[register+offset]`` in a space."""
        base, _, offset = operand.strip("[]").partition("+")
        address = "uint32_t" if space == "shared" else "uint64_t"
        place = f"{self.value(base, address)} + {address}({int(offset or 0)}ll)"
        if space == "param":
            return f"param_at(params, {self.entry.param_bytes}, {place}, {size})"
        return f"{'shared' if space == 'shared' else 'memory'}_at({place}, {size})"

    def put(self, register: str, number: str) -> str:
        return f"put({self.register(register)}, {number})"

    def put_all(self, registers: list[str], numbers: str) -> str:
        """The numbers of an array, each to its register."""
        puts = "; ".join(self.put(name, f"v[{i}]") for i, name in enumerate(registers))
        return f"{{ const auto v = {numbers}; {puts}; }}"

    def uniform(self, it: Instruction, function: str) -> str:
        """A function of numbers of one type."""
        ctype = TYPES[it.type]
        to, *operands = it.operands
        return self.put(to, f"{function}<{ctype}>({', '.join(self.value(operand, ctype) for operand in operands)})")

    # ---- instructions

    def instruction(self, text: str) -> str:
        """One statement of C++."""
        it = parse(text)
        if text in ORDERS:
            return ORDERS[text]
        if it.code in OF_FLOATS:
            to, *operands = it.operands
            return self.put(
                to, f"{OF_FLOATS[it.code]}({', '.join(self.value(operand, 'float') for operand in operands)})"
            )
        if it.code in ("bra", "bra.uni"):
            return f"goto {label(it.operands[0])}"
        if it.code.rpartition(".")[0] in UNIFORM:
            return self.uniform(it, UNIFORM[it.code.rpartition(".")[0]])
        if it.code.startswith("mul.wide."):
            ctype = TYPES[it.type]
            a, b = (self.value(operand, ctype) for operand in it.operands[1:])
            return self.put(it.operands[0], f"mul_wide<{ctype}>({a}, {b})")
        if it.code == "prefetch.global.L2":
            return f"simt::prefetch({self.at(it.operands[0], 'global', '1')})"
        if it.code == "nanosleep.u32":
            return 'refuse("a branch that nothing takes")'
        handler = self.handlers.get(it.kind)
        if handler is None:
            raise ValueError(f"an instruction that is not understood: {text}")
        return handler(it)

    def move(self, it: Instruction) -> str:
        to, what = it.operands
        return self.put(to, self.value(what, TYPES[it.type]))

    def select(self, it: Instruction) -> str:
        to, a, b, first = it.operands
        ctype = TYPES[it.type]
        return self.put(
            to, f"selp<{ctype}>({self.value(a, ctype)}, {self.value(b, ctype)}, {self.value(first, 'bool')})"
        )

    def shift(self, it: Instruction) -> str:
        to, what, by = it.operands
        ctype = TYPES[it.type]
        return self.put(to, f"{it.kind}<{ctype}>({self.value(what, ctype)}, {self.value(by, 'uint32_t')})")

    def insert(self, it: Instruction) -> str:
        to, a, b, start, length = it.operands
        ctype = TYPES[it.type]
        places = f"{self.value(start, 'uint32_t')}, {self.value(length, 'uint32_t')}"
        return self.put(to, f"bfi<{ctype}>({self.value(a, ctype)}, {self.value(b, ctype)}, {places})")

    def compare(self, it: Instruction) -> str:
        _, how, _ = it.code.split(".")
        to, a, b = it.operands
        ctype = TYPES[it.type]
        return self.put(to, f"{how}<{ctype}>({self.value(a, ctype)}, {self.value(b, ctype)})")

    def convert(self, it: Instruction) -> str:
        to, *operands = it.operands
        if it.code in ("cvt.rn.bf16x2.f32", "cvt.rn.f16x2.f32"):  # the first operand is the upper half
            high, low = (self.value(operand, "float") for operand in operands)
            return self.put(to, f"simt::pack_{'bf16' if 'bf16' in it.code else 'half'}({low}, {high})")
        if it.code == "cvt.f32.f16":
            return self.put(to, f"simt::half_to_float({self.value(operands[0], 'uint16_t')})")
        _, *rounding, target, source = it.code.split(".")
        # to float from an integer or from double, to double from float: as C++ does
        if rounding not in ([], ["rn"]) or (
            rounding == [] and target.startswith("f") and (target, source) != ("f64", "f32")
        ):
            raise ValueError(f"a conversion that is not understood: {it.code}")
        return self.put(to, f"static_cast<{TYPES[target]}>({self.value(operands[0], TYPES[source])})")

    def load(self, it: Instruction) -> str:
        space, count = space_and_count(it.code)
        to, address = it.operands
        ctype = TYPES[it.type]
        names = listed(to)
        if len(names) != count:
            raise ValueError(f"a load of {len(names)} registers: {it.code}")
        return self.put_all(names, f"load<{ctype}, {count}>({self.at(address, space, f'{count} * sizeof({ctype})')})")

    def store(self, it: Instruction) -> str:
        space, count = space_and_count(it.code)
        address, what = it.operands
        ctype = TYPES[it.type]
        numbers = ", ".join(self.value(name, ctype) for name in listed(what))
        return f"store<{ctype}, {count}>({self.at(address, space, f'{count} * sizeof({ctype})')}, {{{numbers}}})"

    def shuffle(self, it: Instruction) -> str:
        match = re.fullmatch(r"shfl\.sync\.(bfly|idx)\.b32", it.code)
        if not match:
            raise ValueError(f"a shuffle that is not understood: {it.code}")
        to, exists, x, *rest = it.operands
        numbers = ", ".join([self.value(x, "float"), *(self.value(operand, "uint32_t") for operand in rest)])
        return f"{self.put(to, f'shfl_{match[1]}({numbers})')}; {self.put(exists, 'true')}"

    def barrier(self, it: Instruction) -> str:
        known = {("bar.sync", "0"): "simt::sync_block()", ("bar.warp.sync", "-1"): "simt::sync_warp()"}
        return known[(it.code, *it.operands)]

    def address(self, it: Instruction) -> str:
        to, what = it.operands
        if it.code == "cvta.shared.u64":
            return self.put(to, f"reinterpret_cast<uint64_t>(shared_at({self.value(what, 'uint32_t')}, 1))")
        if it.code != "cvta.to.global.u64":
            raise ValueError(f"an address that is not understood: {it.code}")
        return self.put(to, self.value(what, "uint64_t"))

    def remote(self, it: Instruction) -> str:
        to, mine, rank = it.operands
        place = f"simt::of_rank({self.at(mine, 'global', '1')}, int({self.value(rank, 'uint32_t')}))"
        return self.put(to, f"reinterpret_cast<uint64_t>({place})")

    def copy(self, it: Instruction) -> str:
        if it.code == "cp.async.wait_group":
            return f"simt::wait_for_copies({int(it.operands[0])})"
        shared, source, size, *exist = it.operands
        if (it.code, size) not in (("cp.async.cg.shared.global", "16"), ("cp.async.ca.shared.global", "8")):
            raise ValueError(f"a copy that is not understood: {it.code} of {size} bytes")
        there = self.value(exist[0], "uint32_t") if exist else size
        origin = f"reinterpret_cast<const void*>({self.value(source.strip('[]'), 'uint64_t')})"
        return f"cp_async({self.at(shared, 'shared', size)}, {origin}, {size}, {there})"

    def matrices(self, it: Instruction) -> str:
        across = {
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16": "false",
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16": "true",
        }
        to, row = it.operands
        return self.put_all(listed(to), f"ldmatrix<{across[it.code]}>({self.at(row, 'shared', '16')})")

    def product(self, it: Instruction) -> str:
        sums, a, b, c = map(listed, it.operands)
        if (len(sums), len(a), len(b), len(c)) != (4, 4, 2, 4):
            raise ValueError(f"a product of too many registers: {it.code}")
        left, right = (", ".join(self.value(name, "uint32_t") for name in names) for names in (a, b))
        added = ", ".join(self.value(name, "float") for name in c)
        return self.put_all(sums, f"mma<{MMA[it.code]}>({{{left}}}, {{{right}}}, {{{added}}})")

    def warpgroup(self, it: Instruction) -> str:
        """A product: its sums, its operands, whether it adds to them, signs of both, and which lie across their depth."""
        if it.code == "wgmma.wait_group.sync.aligned":
            return f"simt::wait_for_products({int(it.operands[0])})"
        match = WGMMA.fullmatch(it.code)
        sums, left, right, adds, *flags = it.operands
        if not match or match["left"] != match["right"] or len(listed(sums)) != int(match["columns"]) // 2:
            raise ValueError(f"a product of a warpgroup that is not understood: {it.code}")
        bf16 = str(match["left"] == "bf16").lower()
        head = f"simt::start_product({bf16}, {self.arrays[sums][0]}, {match['columns']}, "
        descriptor, adding = self.value(right, "uint64_t"), self.value(adds, "bool")
        if left.startswith("{") and flags[:2] == ["1", "1"] and len(flags) == 3:
            check = f'if (!{adding}) refuse("a product of registers that adds nothing"); '
            return f"{check}{head}{self.arrays[left][0]}, {descriptor}, {flags[2]} != 0)"
        if flags != ["1", "1", "0", "0"]:
            raise ValueError(f"flags of a product that are not understood: {flags}")
        return f"{head}{self.value(left, 'uint64_t')}, {descriptor}, {adding})"

    # ---- the whole

    def gather_arrays(self) -> None:
        """Registers of products of warpgroups: each in one list, and at one place of it."""
        for line in self.entry.body.splitlines():
            if "wgmma.mma_async" not in line:
                continue
            for kind, operand in zip(("float", "uint32_t"), re.findall(r"\{%[^}]*\}", line), strict=False):
                if operand in self.arrays:
                    continue
                name, registers = f"array{len(self.arrays)}", listed(operand)
                if self.places.keys() & set(registers):
                    raise ValueError(f"registers of two products that overlap: {operand}")
                self.arrays[operand] = (name, len(registers))
                self.places |= {register: f"{name}[{i}]" for i, register in enumerate(registers)}
                self.kinds[name] = kind

    def declarations(self) -> Iterator[str]:
        """Every register, with bits that mean nothing: NaN for floats."""
        for match in re.finditer(r"\n\s*\.reg \.(\w+)\s+%(\w+)<(\d+)>;", self.entry.body):
            ctype = TYPES[match[1]]
            nothing = {"bool": "true", "float": "NAN", "double": "NAN"}.get(ctype, f"{ctype}(-1)")
            names = [f"{match[2]}{i}" for i in range(1, int(match[3])) if f"%{match[2]}{i}" not in self.places]
            if names:
                yield f"{ctype} {', '.join(f'{name} = {nothing}' for name in names)};"
        for name, count in self.arrays.values():
            nothing = "NAN" if self.kinds[name] == "float" else "-1"
            yield f"{self.kinds[name]} {name}[{count}]; std::fill_n({name}, {count}, {nothing});"

    def statements(self) -> Iterator[str]:
        for line in self.entry.body.splitlines():
            text = line.split("//")[0].strip()
            if not text or text.startswith((".reg", ".pragma")):
                continue
            if text.endswith(":"):
                yield f"{label(text[:-1])}:;"
                continue
            yield self.line(text)

    def line(self, text: str) -> str:
        """Of one or more instructions, in braces where they have registers of their own."""
        scope = text.startswith("{") or text.endswith("}")
        out = []
        for part in (" ".join(piece.split()) for piece in re.sub(r"^\{|\}$", "", text).split(";")):
            if match := re.fullmatch(r"\.reg \.(\w+) (%?\w+)", part):
                out.append(f"{TYPES[match[1]]} {match[2].lstrip('%')}")
            elif part:
                guard, _, rest = part.partition(" ") if part.startswith("@") else ("", "", part)
                body = self.instruction(rest)
                condition = ("!" if guard.startswith("@!") else "") + guard.lstrip("@!").lstrip("%")
                out.append(f"if ({condition}) {{ {body}; }}" if guard else body)
        joined = "; ".join(out) + ";"
        return ("{ " if text.startswith("{") else "") + joined + (" }" if scope and text.endswith("}") else "")

    def function(self, name: str) -> str:
        self.gather_arrays()
        body = "\n".join([*self.declarations(), *self.statements()])
        return f"void {name}(const unsigned char* params) {{\n{body}\n}}\n"


def translate(unit: Path, ptx: str) -> str:
    """A C++ unit: the kernels' own source, functions made of their PTX, and which belongs to which."""
    entries = [Entry(m["name"], m["param"], int(m["size"]), m["body"]) for m in ENTRY.finditer(ptx)]
    if len(entries) != ptx.count(".entry "):
        raise ValueError("a kernel has more parameters than one, or none")
    names = readable([entry.name for entry in entries])
    functions = [Translator(entry).function(f"entry{i}") for i, entry in enumerate(entries)]
    table = [
        f'{{reinterpret_cast<const void*>(&{names[e.name]}), "{unit.stem}::{names[e.name]}", simt::ptx::entry{i}}}'
        for i, e in enumerate(entries)
    ]
    rows = ",\n".join(table)
    known = f"[[maybe_unused]] const bool known = simt::ptx::know({{\n{rows}\n}});" if table else ""
    head = f'#include "ptx.h"\n#include "{unit}"\n'
    return "\n".join([head, *within("simt::ptx", *functions), *within("sola::cuda", known), ""])


def within(namespace: str, *parts: str) -> list[str]:
    return [f"namespace {namespace} {{", "namespace {", *parts, "}", f"}}  // namespace {namespace}"]


def main(unit: str, source: str, target: str) -> None:
    """Translate one file."""
    Path(target).write_text(translate(Path(unit), Path(source).read_text()))


if __name__ == "__main__":
    main(*sys.argv[1:])
