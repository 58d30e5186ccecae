"""The translation of PTX into C++, on which `make ptx` relies: what it makes of instructions, and what it refuses."""

from pathlib import Path

import pytest
from emulator.ptx import translate

_FRAME = """
.entry _ZN4sola4cuda6nobodyENS0_1PE(
	.param .align 8 .b8 nobody_param_0[16]
)
.maxntid 32, 1, 1
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<9>;
	.reg .f32 	%f<99>;
	.reg .b64 	%rd<3>;

BODY
	ret;
}
"""


def _made_of(body: str) -> str:
    return translate(Path("nobody.cu"), _FRAME.replace("BODY", body))


@pytest.mark.parametrize(
    ("instruction", "made"),
    [
        # the first operand is the upper half
        ("cvt.rn.bf16x2.f32 %r1, %f1, %f2;", "put(r1, simt::pack_bf16(as<float>(f2), as<float>(f1)))"),
        (
            "setp.leu.f32 %p1, %f1, 0f3F800000;",
            "put(p1, leu<float>(as<float>(f1), as<float>(uint32_t(0x3F800000ull))))",
        ),
        ("@!%p1 bra $L__BB0_2;", "if (!p1) { goto L__BB0_2; }"),
        (
            "ld.param.u64 %rd1, [nobody_param_0+8];",
            "param_at(params, 16, reinterpret_cast<uint64_t>(params) + uint64_t(8ll)",
        ),
        ("ld.shared.v2.f32 {%f1, %f2}, [%r1+4];", "shared_at(as<uint32_t>(r1) + uint32_t(4ll), 2 * sizeof(float))"),
        (
            "mad.lo.s32 %r1, %r2, -3, %r4;",
            "mad_lo<int32_t>(as<int32_t>(r2), static_cast<int32_t>(18446744073709551613ull)",
        ),
    ],
)
def test_instructions(instruction: str, made: str) -> None:
    assert made in _made_of(instruction)


@pytest.mark.parametrize(
    "instruction",
    [
        "sin.approx.f32 %f1, %f2;",
        "cvt.rzi.s32.f32 %r1, %f1;",
        "cvt.rm.f32.s32 %f1, %r1;",
        "ld.local.f32 %f1, [%rd1];",
        "cp.async.cg.shared.global [%r1], [%rd1], 4;",
        "shfl.sync.up.b32 %r1|%p1, %r2, 1, 31, -1;",
    ],
)
def test_what_is_not_understood_is_refused(instruction: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        _made_of(instruction)


def _product(first: int, flags: str) -> str:
    sums = ", ".join(f"%f{i}" for i in range(first, first + 16))
    return (
        f"wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {{{sums}}}, {{%r1, %r2, %r3, %r4}}, %rd1, %p1, {flags};"
    )


def test_products_of_warpgroups() -> None:
    made = _made_of(_product(1, "1, 1, 1"))
    assert "simt::start_product(true, array0, 32, array1, as<uint64_t>(rd1), 1 != 0)" in made
    with pytest.raises(ValueError, match="flags of a product"):
        _made_of(_product(1, "1, -1, 0"))
    with pytest.raises(ValueError, match="registers of two products that overlap"):
        _made_of(_product(1, "1, 1, 0") + "\n" + _product(2, "1, 1, 0"))
