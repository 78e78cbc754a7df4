"""Float16, bfloat16 and float32 in memory, read into and written from blocks of float32 bits.

    float16    s eeeee    ffffffffff                   bias 15: exponents are raised by 112
    bfloat16   s eeeeeeee fffffff                      the upper half of a float32
    float32    s eeeeeeee fffffffffffffffffffffff      bias 127

Bits are moved by integer operations, so that flush-to-zero does not act, or by conversions where a processor does not
flush. Device functions of the CPU kernels.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF32, MAGNITUDE32, MAGNITUDE64, SIGN32, U31
from normstab.numerics.kernels.cpu.compile import as_float32, as_float64, as_uint32, device, outside, view

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "copy_block",
    "narrow_block",
    "narrow_exact",
    "narrowed",
    "widen_block",
    "widen_neighbours",
]

u16, u32, i32 = np.uint16, np.uint32, np.int32
# Codes of the dtypes.
FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = 0, 1, 2, 3
MIN_NORMAL16, INF16, REBIAS16 = u32(0x0400), u32(0x7C00), u32(112 << 23)
SIGN16, MAGNITUDE16, LEAST16 = u32(0x8000), u32(0x7FFF), np.float32(2.0**-24)
# The least normal float32 in float64 bits, and what makes a subnormal one a whole number.
MIN_NORMAL, SCALE32 = 897 << 52, 2.0**149


@outside
def widen_block(source, dtype, x, n):
    """Read `n` numbers as float32 bits, by integer operations."""
    if dtype == FLOAT32:
        copy_block(view(source, n, u32), x, n)
    elif dtype == BFLOAT16:
        halves = view(source, n, u16)
        for i in range(n):
            x[i] = u32(u32(halves[i]) << u32(16))
    else:
        halves = view(source, n, u16)
        for i in range(n):
            h = u32(halves[i])
            a = u32(h & MAGNITUDE16)
            # An exponent of all ones is raised twice, 31 + 2 * 112 = 255, and stays one.
            # A subnormal is a whole number of 2^-24, both normal in float32, and so is their product.
            wide = u32(u32(a << u32(13)) + REBIAS16)
            wide = u32(wide + REBIAS16) if a >= INF16 else wide
            small = as_uint32(np.float32(np.float32(i32(a)) * LEAST16))
            x[i] = u32((small if a < MIN_NORMAL16 else wide) | u32(u32(h & SIGN16) << u32(16)))


@outside
def narrow_block(y, target, dtype, n):
    """Write `n` float32 bits that the dtype represents exactly, by integer operations."""
    if dtype == FLOAT32:
        copy_block(y, view(target, n, u32), n)
    elif dtype == BFLOAT16:
        halves = view(target, n, u16)
        for i in range(n):
            halves[i] = u16(y[i] >> u32(16))
    else:
        halves = view(target, n, u16)
        for i in range(n):
            a = u32(y[i] & MAGNITUDE32)
            normal = u32(u32(min(a, u32(143 << 23)) - REBIAS16) >> u32(13))  # infinity is 2^16 before rebiasing
            normal = u32(0x7E00) if a > INF32 else normal
            # Below 2^-14 the significand, implicit bit and all, is
            # shifted to whole numbers of 2^-24; 31 places leave nothing.
            below = min(u32(u32(126) - min(u32(a >> u32(23)), u32(126))), U31)
            small = u32(u32(u32(a & u32(0x7FFFFF)) | u32(0x800000)) >> below)
            h = small if a < u32(113 << 23) else normal
            halves[i] = u16(u32(h | u32(u32(y[i] & SIGN32) >> u32(16))))


@device
def copy_block(x, y, n):
    """Copy x[:n] to y[:n]; an assignment of slices would take seconds to compile."""
    for i in range(n):
        y[i] = x[i]


@outside
def widen_neighbours(source, values, n):
    """Read `n` float32 as float64 by conversions, where no subnormals are flushed."""
    x = view(source, n, np.float32)
    for i in range(n):
        values[i] = np.float64(x[i])


@outside
def narrow_exact(y, target, n, flushes):
    """Write `n` float64 bits that float32 represents exactly, by integers where the processor `flushes` subnormals."""
    x = view(target, n, np.float32)
    if flushes:
        for i in range(n):
            x[i] = narrowed(y[i])
    else:
        for i in range(n):
            x[i] = np.float32(as_float64(y[i]))


@device
def narrowed(bits):
    """Return float64 bits as the float32 that represents them, by integers where that is subnormal."""
    a = bits & MAGNITUDE64
    # A conversion would flush a subnormal: that is a whole number of 2^-149, which is its bits. One of both is kept.
    normal = as_uint32(np.float32(as_float64(bits)))
    small = u32(u32(np.int32(as_float64(a) * SCALE32)) | u32(u32(bits >> 32) & u32(2**31)))
    return as_float32(small if a < MIN_NORMAL else normal)
