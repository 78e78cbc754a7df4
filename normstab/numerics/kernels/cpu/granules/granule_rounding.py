"""The numbers of a granule rounded once, quotients by its scale, with their codes.

    x  --/ scale-->  quotient  --to a multiple of the quantum-->  q  --bits of q, shifted-->  code
                                                                  q  --scale q-->  value

A division takes long, so that x is multiplied by the reciprocal of the scale, which is off by a little. In float32
lanes that is noticed where it could matter, near a tie, and float64 ones do it again: kept to 40 bits, a quotient of
two float32 numbers is on the right side of every tie. What happened is counted by the way, of q before it is kept in
range: how many were beyond the largest number, vanished, or are subnormal.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import (
    as_float32,
    as_float64,
    as_int64,
    as_uint32,
    device,
    left32,
    right32,
)

__all__ = [
    "ABSOLUTE",
    "FLUSHING",
    "FRACTION",
    "INFINITE",
    "LEAST_SCALE",
    "MAGNITUDE",
    "PART",
    "exponent_of",
    "multiple",
    "round_in_parts",
    "round_narrow",
    "round_whole",
]


# Bits of float32 and of float64.
MAGNITUDE, INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
ABSOLUTE, FRACTION = np.int64(0x7FFFFFFFFFFFFFFF), np.int64((1 << 52) - 1)
SIGN = np.int64(-0x8000000000000000)
HALF_BIT = np.int64(1 << 51)
u32 = np.uint32
U1, U23, FULL, SIGN32, HALF_BIT32 = u32(1), u32(23), u32(0xFFFFFFFF), u32(0x80000000), u32(1 << 22)
# A quotient by a rounded reciprocal is off by less than this share of itself.
DOUBT = np.float32(2.0**-21)
LEAST_SCALE, PART = 2.0**-100, 512
# Veltkamp's factor, which leaves 40 of 53 bits. Source: Handbook of Floating-Point Arithmetic, 4.4.
SPLIT = 8193.0
SHIFTER = 1.5 * 2.0**52  # whose last bits are those of a whole number added to it
FLUSHING = 2.0**-1000  # in place of the reciprocal of a scale that vanished


@device
def exponent_of(x):  # pragma: no cover - compiled
    """Return floor(log2 x) of a positive normal float64."""
    return (as_int64(x) >> 52) - 1023


@device
def multiple(x, quantum):  # pragma: no cover - compiled
    """Return x rounded to a multiple of 2^quantum, ties to even; the sign of zero is lost."""
    # 1.5 2^(quantum + 52), whose last bit is 2^quantum: the addition rounds.
    # The half keeps a negative sum in its binade.
    shifter = as_float64(((quantum + np.int64(1075)) << 52) | HALF_BIT)
    return (x + shifter) - shifter


@device
def quotient_of(value, reciprocal):  # pragma: no cover - compiled
    """Return value times reciprocal to 40 bits: exact where the quotient is a tie, and on its side elsewhere."""
    # x and (tie times scale) are whole numbers of one unit, the latter
    # below 2^34: where they differ, it is by more than 2^-34 of them.
    # Two roundings of 53 bits err by far less, and 40 bits do not show it.
    y = np.float64(value) * reciprocal
    c = y * SPLIT
    return c - (c - y)


@device
def round_floats(x, scale, out, codes, m, whole, number):  # pragma: no cover - compiled
    """Write values and codes of `m` float32 whose scale is `scale`, in a floating-point element; return the counts."""
    # Places in `whole` and `number` are those of cpu_quantize.FIELDS and NUMBERS.
    p, emin, has_negative_zero = whole[3], whole[4], whole[6] != 0
    largest, sign_bit = number[0], np.int64(1) << (whole[8] - 1)
    reciprocal = FLUSHING if scale == 0 else 1.0 / scale
    drop, base, normal = np.int64(53) - p, (emin + 1023) << (p - 1), np.int64(1) << (p - 1)
    least_normal = as_float64((emin + 1023) << 52)
    beyond, vanished, subnormal = np.int64(0), np.int64(0), np.int64(0)
    for i in range(m):
        bits = as_int64(quotient_of(x[i], reciprocal))
        a = as_float64(bits & ABSOLUTE)
        # Below emin the quantum stays.
        q = multiple(a, max(exponent_of(a), emin) - p + 1)
        # Adding the least normal number makes the bits below it those of a subnormal pattern.
        is_small = q < least_normal
        beyond += q > largest
        vanished += (q == 0) & (x[i] != np.float32(0))
        subnormal += is_small & (q != 0)
        q = largest if q > largest else q
        pattern = as_int64(q + least_normal if is_small else q) >> drop
        # A code is the exponent, 1 at emin, and the digits behind it; a subnormal has exponent 0.
        code = pattern - base + (np.int64(0) if is_small else normal)
        sign = bits & SIGN if has_negative_zero or q != 0 else np.int64(0)
        codes[i] = np.uint8(code | (sign_bit if sign != 0 else np.int64(0)))
        out[i] = np.float32(scale * as_float64(as_int64(q) | sign))
    return beyond, vanished, subnormal


@device
def round_narrow(x, shared, out, codes, m, whole, number):  # pragma: no cover - compiled
    """Do what round_floats does in float32 lanes; return the counts, and whether a quotient may lie beyond a tie.

    `shared` has the reciprocal and the scale of each element, so that one loop runs over many granules. Where the
    scale is a power of two the quotient is exact, or so small that it vanishes either way.
    """
    # Exponents are biased as in float32.
    p, emin = u32(whole[3]), u32(whole[4] + 127)
    largest, reciprocal, scale = np.float32(number[0]), shared[0], shared[1]
    drop, base, normal = u32(24 - whole[3]), u32((whole[4] + 127) << (whole[3] - 1)), u32(1 << (whole[3] - 1))
    least_normal, sign_down = as_float32(left32(emin, U23)), u32(32 - whole[8])
    keeps_sign = FULL if whole[6] != 0 else u32(0)
    doubtful, beyond, vanished, subnormal = u32(0), u32(0), u32(0), u32(0)
    for i in range(m):
        y = np.float32(x[i] * reciprocal[i])
        bits = as_uint32(y)
        a = as_float32(u32(bits & MAGNITUDE))
        e = right32(u32(bits & MAGNITUDE), U23)
        e = e if e > emin else emin
        quantum = u32(e - p + U1)
        shifter = as_float32(u32(left32(u32(quantum + U23), U23) | HALF_BIT32))
        q = np.float32(np.float32(a + shifter) - shifter)
        # How far the quotient is from half a quantum off q, which would be a tie.
        from_tie = np.float32(abs(np.float32(a - q)) - as_float32(left32(u32(quantum - U1), U23)))
        doubtful = u32(doubtful | u32(abs(from_tie) <= np.float32(a * DOUBT)))
        is_small = q < least_normal
        beyond = u32(beyond + u32(q > largest))
        vanished = u32(vanished + u32((q == np.float32(0)) & (x[i] != np.float32(0))))
        subnormal = u32(subnormal + u32(is_small & (q != np.float32(0))))
        q = largest if q > largest else q
        pattern = right32(as_uint32(np.float32(q + least_normal) if is_small else q), drop)
        code = u32(pattern - base + (u32(0) if is_small else normal))
        # A zero has a sign only where the format has one.
        sign = u32(u32(bits & SIGN32) & (FULL if q != np.float32(0) else keeps_sign))
        codes[i] = np.uint8(u32(code | right32(sign, sign_down)))
        out[i] = np.float32(scale[i] * as_float32(u32(as_uint32(q) | sign)))
    return (np.int64(beyond), np.int64(vanished), np.int64(subnormal)), doubtful != 0


@device
def round_in_parts(x, scale, out, codes, m, whole, number):  # pragma: no cover - compiled
    """Round a long granule in a floating-point element, part by part: in float32 lanes where they are sure.

    Return the counts.
    """
    is_power_of_two, length = as_int64(scale) & FRACTION == 0, min(m, PART)
    shared = np.empty((2, length), np.float32)
    shared[0, :], shared[1, :] = np.float32(1.0 / scale), np.float32(scale)
    beyond, vanished, subnormal = np.int64(0), np.int64(0), np.int64(0)
    for start in range(0, m, PART):
        n = min(PART, m - start)
        of_x, of_out, of_codes = x[start : start + n], out[start : start + n], codes[start : start + n]
        is_doubtful, counts = True, (np.int64(0), np.int64(0), np.int64(0))
        # Within these neither the reciprocal nor a quotient that matters leaves float32's normal range.
        # By a power of two no quotient is off.
        if LEAST_SCALE <= scale <= 1.0 / LEAST_SCALE:
            counts, is_doubtful = round_narrow(of_x, shared, of_out, of_codes, n, whole, number)
            is_doubtful = is_doubtful and not is_power_of_two
        if is_doubtful:
            counts = round_floats(of_x, scale, of_out, of_codes, n, whole, number)
        beyond, vanished, subnormal = beyond + counts[0], vanished + counts[1], subnormal + counts[2]
    return beyond, vanished, subnormal


@device
def round_whole(x, scale, out, codes, m, whole, number):  # pragma: no cover - compiled
    """Write values and codes of `m` float32 whose scale is `scale`, in fixed point or whole numbers; return counts."""
    quantum, largest, least = -whole[7], number[0], number[1]
    reciprocal = FLUSHING if scale == 0 else 1.0 / scale
    up = as_float64((whole[7] + 1023) << 52)
    beyond, vanished = np.int64(0), np.int64(0)
    for i in range(m):
        # Fixed point has no -0, and -0 + 0 is +0.
        q = multiple(quotient_of(x[i], reciprocal), quantum) + 0.0
        beyond += (q > largest) | (q < least)
        vanished += (q == 0) & (x[i] != np.float32(0))
        q = largest if q > largest else q
        q = least if q < least else q
        # The last bits of the sum are the whole number itself, in two's complement.
        codes[i] = np.uint8(as_int64(q * up + SHIFTER) & 0xFF)
        out[i] = np.float32(scale * q)
    return beyond, vanished, np.int64(0)
