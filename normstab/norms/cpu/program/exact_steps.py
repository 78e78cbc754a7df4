"""What a program does to blocks and numbers without rounding: signs, magnitudes, comparisons, choices.

Blocks are given by address. What a comparison finds is 1 or 0.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.environment import floats
from normstab.norms.cpu.program.instruction_codes import CODES
from normstab.numerics.kernels.cpu.bits import MAGNITUDE32, SIGN32
from normstab.numerics.kernels.cpu.compile import device, outside, view

__all__ = ["choose_block", "compare_block", "exact_scalar", "holds", "sign_bits_block", "sign_block"]

u32 = np.uint32
SIGN, ABS, NEG, CHOICE = (CODES[name] for name in ("sign", "abs", "aten::neg", "aten::where.self"))
EQ, LT = CODES["aten::eq.Scalar"], CODES["aten::lt.Scalar"]
ZERO, ONE = np.float32(0.0), np.float32(1.0)


@outside
def sign_block(d, y, n):  # pragma: no cover - compiled
    """Set y = sign(d), NaN of NaN."""
    x, signs = floats(d, n), floats(y, n)
    for i in range(n):
        s = ONE if x[i] > ZERO else (-ONE if x[i] < ZERO else ZERO)
        signs[i] = x[i] if x[i] != x[i] else s


@outside
def sign_bits_block(code, a, y, n):  # pragma: no cover - compiled
    """Set y to the magnitude of a, or to a with its other sign."""
    x, z = view(a, n, u32), view(y, n, u32)
    if code == ABS:
        for i in range(n):
            z[i] = x[i] & MAGNITUDE32
    else:
        for i in range(n):
            z[i] = x[i] ^ SIGN32


@device
def holds(code, x, bound):
    """Whether a comparison holds."""
    if code == EQ:
        return x == bound
    return x < bound if code == LT else x > bound


@outside
def compare_block(code, a, bound, y, n):  # pragma: no cover - compiled
    """Set y to 1 where a compares with a number as `code` says, else to 0."""
    x, z, b = floats(a, n), floats(y, n), np.float32(bound)
    if code == EQ:
        for i in range(n):
            z[i] = ONE if x[i] == b else ZERO
    elif code == LT:
        for i in range(n):
            z[i] = ONE if x[i] < b else ZERO
    else:
        for i in range(n):
            z[i] = ONE if x[i] > b else ZERO


@outside
def choose_block(mask, a, b, y, n):  # pragma: no cover - compiled
    """Set y to a where the mask is not 0, else to b."""
    m, p, q, z = view(mask, n, u32), view(a, n, u32), view(b, n, u32), view(y, n, u32)
    for i in range(n):
        z[i] = p[i] if m[i] != u32(0) else q[i]


@outside
def exact_scalar(code, a, b, c):  # pragma: no cover - compiled
    """Return the same of numbers; a choice is between b and c."""
    if code == SIGN:
        return a if a != a else np.float64(a > 0.0) - np.float64(a < 0.0)
    if code == ABS:
        return abs(a)
    if code == NEG:
        return -a
    if code == CHOICE:
        return b if a != 0.0 else c
    return 1.0 if holds(code, a, b) else 0.0
