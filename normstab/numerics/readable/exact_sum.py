"""The exact sum of float64 values, by an integer superaccumulator.

Each value is cut into pieces of a whole number of 32-bit limbs, limbs are added as int64, and only the end
is rounded. No floating-point addition takes part, so flush-to-zero cannot act.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normstab.numerics.readable.reference import decode

__all__ = ["exact_sum"]

LIMB_BITS = 32
PIECE_BITS = 27  # two pieces hold a 53-bit significand; shifted by up to 31 bits a piece spans two limbs
SIGNIFICAND_BITS = 53
LEAST_EXPONENT, GREATEST_EXPONENT = -1074, 1023


def exact_sum(values: Tensor, *, to_odd: bool, rounds_down: bool = False) -> Tensor:
    """Return the sum over the last axis of `values` (K, n), rounded once to float64: (K,).

    `to_odd`: rounded to odd, so that one later rounding to 51 bits or fewer is the only one; else to nearest
    even. An exact zero is -0 if every addend is -0, or if `rounds_down` and not every addend is +0; else +0.
    NaN, or infinities of both signs, give NaN; an empty sum is +0.
    """
    if values.numel() == 0:
        return values.new_zeros(len(values))
    exact = decode(values)
    total = torch.tensor(
        [_to_float(number, to_odd=to_odd) for number in _whole_sums(exact.significand, exact.exponent, values < 0)],
        dtype=torch.float64,
        device=values.device,
    )
    has_minus = torch.signbit(values).any(1) if rounds_down else torch.signbit(values).all(1)
    total = torch.where((total == 0) & has_minus, -0.0, total)
    special = torch.where(exact.is_inf | exact.is_nan, values, 0.0).sum(1)
    return torch.where(special == 0, total, special)


def _whole_sums(significand: Tensor, exponent: Tensor, is_negative: Tensor) -> list[int]:
    """Return the K sums as whole numbers of 2^LEAST_EXPONENT."""
    # |x| = (significand 2^-52) 2^exponent; positions are counted in bits from 2^-1074 upward.
    position = exponent - (SIGNIFICAND_BITS - 1) - LEAST_EXPONENT
    # A subnormal's significand ends in zeros: moving them out keeps positions at 0 or more.
    significand = significand >> (-position).clamp(min=0)
    position = torch.where(significand == 0, 0, position.clamp(min=0))
    sign = torch.where(is_negative, -1, 1)
    lowest = int(position.min()) // LIMB_BITS
    n_limbs = (int(position.max()) + SIGNIFICAND_BITS) // LIMB_BITS + 2 - lowest
    limbs = significand.new_zeros(len(significand), n_limbs)
    for piece, offset in ((significand & ((1 << PIECE_BITS) - 1), 0), (significand >> PIECE_BITS, PIECE_BITS)):
        at = position + offset
        shifted = piece << (at % LIMB_BITS)
        limb = at // LIMB_BITS - lowest
        limbs.scatter_add_(1, limb, sign * (shifted & ((1 << LIMB_BITS) - 1)))
        limbs.scatter_add_(1, limb + 1, sign * (shifted >> LIMB_BITS))
    return [sum(value << (LIMB_BITS * (i + lowest)) for i, value in enumerate(row) if value) for row in limbs.tolist()]


def _to_float(number: int, *, to_odd: bool) -> float:
    """Return number 2^LEAST_EXPONENT as a float, rounded to odd or to nearest even."""
    magnitude = abs(number)
    excess = magnitude.bit_length() - SIGNIFICAND_BITS
    shift = 0
    if excess > 0:
        whole, rest = magnitude >> excess, magnitude & ((1 << excess) - 1)
        half = 1 << (excess - 1)
        rounds_up = rest > half or (rest == half and whole & 1)
        whole = whole | (rest > 0) if to_odd else whole + rounds_up
        magnitude, shift = whole, excess
    is_beyond = magnitude.bit_length() + shift + LEAST_EXPONENT - 1 > GREATEST_EXPONENT
    value = math.inf if is_beyond else math.ldexp(float(magnitude), shift + LEAST_EXPONENT)
    return -value if number < 0 else value
