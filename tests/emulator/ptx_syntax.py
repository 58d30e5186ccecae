"""How PTX is written, as far as our kernels are: instructions, operands, entries, and what stands for them in C++."""

from __future__ import annotations

import re
from dataclasses import dataclass

TYPES = {
    "pred": "bool", "u8": "uint8_t", "b8": "uint8_t", "s16": "int16_t", "u16": "uint16_t", "b16": "uint16_t",
    "s32": "int32_t", "u32": "uint32_t", "b32": "uint32_t", "s64": "int64_t", "u64": "uint64_t", "b64": "uint64_t",
    "f32": "float", "f64": "double",
}  # fmt: skip
# instructions whose operands and result have one type, by all that stands before it
UNIFORM = {
    **{name: name for name in ("add", "sub", "mul", "div", "rem", "neg", "abs", "min", "max")},
    **{name: name + "_" for name in ("and", "or", "xor", "not")},
    "mul.lo": "mul_lo", "mul.hi": "mul_hi", "mad.lo": "mad_lo", "fma.rn": "fma_rn", "rcp.rn": "rcp_rn", "sqrt.rn": "sqrt_rn",
    "div.rn": "div_rn",
}  # fmt: skip
# functions of floats that are the emulator's own
OF_FLOATS = {
    "ex2.approx.ftz.f32": "simt::fast_exp2",
    "rcp.approx.f32": "simt::fast_reciprocal",
    "rcp.approx.ftz.f32": "simt::normal_reciprocal",
    "max.NaN.f32": "simt::larger",
    "fma.rm.f32": "fma_down",
    "cvt.sat.f32.f32": "saturate",
    "cvt.rna.tf32.f32": "simt::round_tf32",
}
SPECIAL = {
    "%tid.x": "threadIdx.x", "%ctaid.x": "blockIdx.x", "%ntid.x": "blockDim.x", "%nctaid.x": "gridDim.x",
    "%cluster_ctarank": "uint32_t(simt::cluster_rank())",
}  # fmt: skip
MMA = {
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": "simt::mma_bf16",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": "simt::mma_half",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": "simt::mma_tf32",
}
# without operands
ORDERS = {
    "ret": "return",
    "griddepcontrol.launch_dependents": "simt::let_next_start()",
    "griddepcontrol.wait": "simt::wait_for_results()",
    "barrier.cluster.arrive.release": "",  # the wait, which follows at once, is where a thread stops
    "barrier.cluster.wait.acquire": "simt::sync_cluster()",
    "cp.async.commit_group": "simt::commit_copies()",
    "wgmma.fence.sync.aligned": "simt::arrive_warpgroup()",
    "wgmma.commit_group.sync.aligned": "simt::commit_products()",
    "fence.proxy.async.shared::cta": "simt::publish_to_tensor_cores()",
}
ENTRY = re.compile(
    r"\.entry (?P<name>\w+)\(\s*\.param \.align \d+ \.b8 (?P<param>\w+)\[(?P<size>\d+)\]\s*\).*?\n\{(?P<body>.*?)\n\}\n",
    re.DOTALL,
)
WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<columns>\d+)k16\.f32\.(?P<left>b?f16)\.(?P<right>b?f16)")


@dataclass(frozen=True)
class Entry:
    """A kernel as it stands in a PTX file."""

    name: str
    param: str
    param_bytes: int
    body: str


@dataclass
class Instruction:
    """One, with its operands: ``{a, b}`` is a list, ``[a]`` an address."""

    code: str
    operands: list[str]

    @property
    def kind(self) -> str:
        return self.code.split(".")[0]

    @property
    def type(self) -> str:
        return self.code.rsplit(".", 1)[1]


def parse(text: str) -> Instruction:
    """``add.s32 %r1, %r2, {%r3, %r4}`` → its code and three operands."""
    code, _, rest = text.strip().partition(" ")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s|]+", rest)
    return Instruction(code, operands)


def listed(operand: str) -> list[str]:
    """Registers of ``{a, b}``, or of one alone."""
    return [name.strip() for name in operand.strip("{}").split(",")]


def space_and_count(code: str) -> tuple[str, int]:
    """``ld.shared.v2.f32`` → shared, 2; memory without a space is generic."""
    match = re.fullmatch(r"(?:ld|st)(?:\.(global|shared|param))?(?:\.v([24]))?\.\w+", code)
    if not match:
        raise ValueError(f"an access that is not understood: {code}")
    return match[1] or "generic", int(match[2] or 1)


def label(name: str) -> str:
    return name.strip().lstrip("$")
