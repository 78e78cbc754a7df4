"""The scale of a granule from its largest magnitude, in Triton: as `scaled.scales` defines it, for many side by side.

In float64, which holds every quotient and product here well enough to be rounded once more, and one number a granule.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_kernels import CODES
from normstab.numerics.kernels.cuda.float32_bits import (
    INF32,
    MAGNITUDE32,
    SIGN32,
    as_float32,
    as_int32,
    finished32,
    unbounded32,
)
from normstab.numerics.kernels.cuda.float32_exact import exact32

__all__ = ["CANONICAL", "NUMBERS", "RULES", "divided", "events_of", "scale_of", "settled_granules"]

# How the scale follows.
RULES = {"max": 0, "floor": 1, "ceil": 2, "even": 3, "rceil": 4, "two scales": 5}
RULE_MAX, RULE_FLOOR, RULE_CEIL, RULE_EVEN, RULE_RCEIL, RULE_TWO_SCALES = (tl.constexpr(i) for i in range(6))
# What a kernel is told of a format, int64: whole numbers, and the bits of float64.
NUMBERS = (
    "largest", "emax", "precision", "least_exponent", "greatest_exponent", "scale_precision", "scale_emin", "scale_max",
)  # fmt: skip
FRACTION, HALF_BIT = tl.constexpr((1 << 52) - 1), tl.constexpr(1 << 51)
DIV, ONE = tl.constexpr(CODES["div"]), tl.constexpr(127 << 23)
CANONICAL = tl.constexpr(0x7FC00000)  # every NaN
# A scale that vanished: quotients are by 2^1000. Above 2^-75 they are not zero before they are rounded.
LOST_BELOW = tl.constexpr(52 << 23)
LEAST = tl.constexpr(1)


@triton.jit
def float64_of(bits):
    """Return the float64 of the bits."""
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def exponent_of(x):
    """Return floor(log2 x) of a positive normal float64; of zero what is below all others."""
    return (x.to(tl.int64, bitcast=True) >> 52) - 1023


@triton.jit
def multiple(x, quantum):
    """Return x >= 0 rounded to a multiple of 2^quantum, ties to even."""
    shifter = float64_of(((quantum + 1075) << 52) | HALF_BIT)
    return (x + shifter) - shifter


@triton.jit
def to_fp32(x):
    """Return float64 `x` rounded to float32, still as float64."""
    return x.to(tl.float32).to(tl.float64)


@triton.jit
def scale_of(top, of_tensor, numbers, RULE: tl.constexpr):
    """Return the scale's float32 bits for largest magnitudes `top` (bits), and where it was clipped.

    1 for a granule of zeros, NaN for one with an infinity or a NaN. `of_tensor` points at the tensor's largest
    magnitude, for a rule of two scales.
    """
    is_whole = (top > 0) & (top < INF32)
    amax = as_float32(tl.where(is_whole, top, ONE)).to(tl.float64)
    largest = float64_of(tl.load(numbers))
    clipped = top < 0
    if RULE == RULE_MAX:
        scale = as_int32((amax / largest).to(tl.float32))
    elif RULE == RULE_TWO_SCALES:
        precision, emin, most = tl.load(numbers + 5), tl.load(numbers + 6), float64_of(tl.load(numbers + 7))
        whole = as_float32(tl.load(of_tensor)).to(tl.float64)
        tensor_scale = to_fp32(whole / (largest * most))
        tensor_scale = tl.where(tensor_scale == 0, 1.0, tensor_scale)
        quotient = to_fp32(amax / to_fp32(largest * tensor_scale))
        s = multiple(quotient, tl.maximum(exponent_of(quotient), emin) - precision + 1)
        clipped = (s > most) & is_whole
        scale = as_int32((tensor_scale * tl.minimum(s, most)).to(tl.float32))
    else:
        e = exponent_of(amax) - tl.load(numbers + 1)
        if RULE == RULE_EVEN:
            e = exponent_of(multiple(amax, exponent_of(amax) - tl.load(numbers + 2) + 1)) - tl.load(numbers + 1)
        if RULE == RULE_CEIL:
            # The least e with largest 2^e >= amax, by the bits: a logarithm would err next to powers of two.
            above = (amax.to(tl.int64, bitcast=True) & FRACTION) > (tl.load(numbers) & FRACTION)
            e = exponent_of(amax) - exponent_of(largest) + above.to(tl.int64)
        if RULE == RULE_RCEIL:
            quotient = to_fp32(amax / largest)
            rest = (quotient.to(tl.int64, bitcast=True) & FRACTION) != 0
            # A quotient that vanished is below every exponent, and is clipped.
            e = exponent_of(quotient) + rest.to(tl.int64)
        kept = tl.minimum(tl.maximum(e, tl.load(numbers + 3)), tl.load(numbers + 4))
        clipped = (kept != e) & is_whole
        scale = as_int32(float64_of((kept + 1023) << 52).to(tl.float32))
    scale = tl.where(top == 0, ONE, scale)
    return tl.where(top >= INF32, CANONICAL, scale), clipped


@triton.jit
def divided(bits, scale, rule, STYLE: tl.constexpr):
    """Return bits / scale rounded by `rule`, and what counting it needs: (y, x, seen, is_beyond)."""
    x, seen, _, is_forced = exact32(bits, scale, DIV, False)
    # By a scale that vanished, numbers do too; all but the least were not zero before.
    is_lost = (scale == 0) & ((bits & MAGNITUDE32) < INF32)
    least = tl.where((bits & MAGNITUDE32) > LOST_BELOW, LEAST, 0)
    x = tl.where(is_lost, (bits & SIGN32) | least, x)
    seen, is_forced = tl.where(is_lost, 0, seen), is_forced & (is_lost == 0)
    y, is_beyond = finished32(x, unbounded32(x, bits.to(tl.uint32, bitcast=True) & 0, rule, STYLE), is_forced, rule)
    return y, x, seen, is_beyond


@triton.jit
def events_of(top, scale, clipped, is_granule, rule, STYLE: tl.constexpr):
    """Return per granule: clipped + zero 2^10 + dead 2^20; the scale, and its distance from infinity, where it counts.

    Dead is one whose largest magnitude rounds to zero, and so all.
    """
    y, _, _, _ = divided(top, scale, rule, STYLE)
    is_used = is_granule & (top > 0) & (top < INF32)
    is_dead, is_zero = is_used & ((y & MAGNITUDE32) == 0), is_granule & (top == 0)
    word = (clipped & is_granule).to(tl.int32) | (is_zero.to(tl.int32) << 10) | (is_dead.to(tl.int32) << 20)
    is_seen = is_used & (scale > 0) & (scale <= INF32)
    return word, tl.where(is_seen, scale, 0), tl.where(is_seen, INF32 - scale, 0)


@triton.jit
def settled_granules(word, largest, below_inf, found):
    """Add what a program has counted of granules to `found`, int64: clipped, zero, dead, and the two scales."""
    wide = word.to(tl.int64)
    tl.atomic_add(found, tl.sum(wide & 1023), sem="relaxed")
    tl.atomic_add(found + 1, tl.sum((wide >> 10) & 1023), sem="relaxed")
    tl.atomic_add(found + 2, tl.sum(wide >> 20), sem="relaxed")
    tl.atomic_max(found + 3, tl.max(largest).to(tl.int64), sem="relaxed")
    tl.atomic_max(found + 4, tl.max(below_inf).to(tl.int64), sem="relaxed")
