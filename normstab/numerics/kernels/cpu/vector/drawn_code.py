"""Stochastic rounding in vector code: LLVM instructions that a Rounder of rounding_code writes.

    normal numbers    [ sign | exponent | kept digits | 1 0 1 1 0 ] + random bits at the same place: what carries on
    all others        t of the number below, and what is left in units of 2^-R quanta

Where these units and the random bits reach 2^R, t steps up.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from normstab.numerics.kernels.cpu.vector.note_code import Note
from normstab.numerics.kernels.cpu.vector.vectors import INFINITY, VF, VI, WIDTH, splat

__all__ = ["SIGNIFICAND", "ZEROS", "drawn"]

SIGNIFICAND = 23
"""Digits of a float32 behind the leading one."""
ZEROS = ir.Constant(VF, [0.0] * WIDTH)
"""A lane of zeros for every element."""
# 2^R / quantum = FIRST_FACTOR 2^(R + UNITS - 127) / (the power of two in c), exponents biased.
FIRST_FACTOR, UNITS = ir.Constant(VF, [2.0**24] * WIDTH), SIGNIFICAND + 2 * 127 - 24


def drawn(rounder: Any, s: Any, error: Any, size: Any, field: Any, note: Note, is_off: Any | None = None) -> Any:
    """Return s + error, whose truncated magnitude is `size`, rounded away from zero where random bits say so.

    Where all lanes are zeros or normal numbers of the format, by whole numbers. Of such a float32 the digits below the
    quantum are its lowest bits: the random ones, shifted to them, are added, and what carries on goes up. More
    random bits than those are digits below float32 itself, of which only what `is_off` may have any.
    """
    b, code = rounder.b, rounder.code
    one, bits = splat(1), rounder.random_bits
    is_slow = b.icmp_unsigned("<", b.sub(size, one), b.sub(rounder.low, one))
    if is_off is not None:
        is_slow = b.or_(is_slow, b.and_(is_off, b.icmp_signed(">", bits, rounder.dropped)))
    unused = b.sub(splat(32), code.less(bits, rounder.dropped))
    added = b.lshr(b.shl(b.lshr(field, unused), unused), b.sub(splat(32), rounder.dropped))
    kept = b.shl(b.ashr(splat(-1), rounder.dropped), rounder.dropped)
    y = cgutils.alloca_once_value(b, b.and_(b.add(size, added), kept))
    with b.if_then(b.icmp_unsigned("!=", b.bitcast(is_slow, ir.IntType(WIDTH)), ir.IntType(WIDTH)(0)), likely=False):
        b.store(_counted_in_units(rounder, s, error, size, field), y)
    return rounder.signed(b.load(y), code.sign(s), note)


def _counted_in_units(rounder: Any, s: Any, error: Any, size: Any, field: Any) -> Any:
    """Return the magnitude of the same, whatever it is but special.

    N = floor(2^R (rest + error) / quantum): of a float32 s, either 2^R rest / quantum is whole, or `error` is less
    than what it lacks to the next whole number. The random bits are the topmost R of `field`.
    """
    b, code = rounder.b, rounder.code
    sign, one = code.sign(s), splat(1)
    m, error = code.floats(code.size(s)), code.floats(b.xor(code.bits(error), sign))
    c_bits = b.add(code.greater(b.and_(size, splat(INFINITY)), rounder.low), rounder.lift)
    c = code.floats(c_bits)
    t = b.fadd(m, c)
    # t was rounded to nearest: where it lies above m + error, the number below is one less in its last bit.
    rest, is_less = b.fsub(m, b.fsub(t, c)), b.fcmp_ordered("<", error, ZEROS)
    is_above = b.or_(b.fcmp_ordered("<", rest, ZEROS), b.and_(b.fcmp_ordered("==", rest, ZEROS), is_less))
    t_bits = b.add(code.bits(t), b.sext(is_above, VI))
    rest = b.fsub(m, b.fsub(code.floats(t_bits), c))
    # 2^R / quantum in two factors, of which the first alone is a float32 where quanta are the least.
    exponent = b.shl(b.add(rounder.random_bits, splat(UNITS)), splat(SIGNIFICAND))
    scale = code.floats(b.sub(exponent, b.and_(c_bits, splat(INFINITY))))
    units = [b.fmul(b.fmul(x, FIRST_FACTOR), scale) for x in (rest, error)]
    whole, lack = (b.fptosi(x, VI) for x in units)
    is_whole = b.fcmp_ordered("==", b.sitofp(whole, VF), units[0])
    is_part = b.or_(b.fcmp_unordered("!=", b.sitofp(lack, VF), units[1]), b.icmp_signed("==", lack, splat(0)))
    lack = b.add(lack, b.sext(b.and_(is_less, is_part), VI))
    number = b.add(whole, code.where(is_whole, lack))
    number = b.add(number, b.lshr(field, b.sub(splat(32), rounder.random_bits)))
    t_bits = b.add(t_bits, b.and_(b.lshr(number, rounder.random_bits), one))
    return code.size(b.fsub(code.floats(t_bits), c))
