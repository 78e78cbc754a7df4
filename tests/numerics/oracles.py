"""A rounding that shares no code with the package: it enumerates the values of a format and looks them up.

Also the tensors that tests of rounding are fed with. Nothing here imports normstab but the format's data.
"""

from __future__ import annotations

import numpy as np
import torch

from normstab import FixedFormat

MODES = ("nearest", "nearest-away", "toward-zero", "up", "down", "to-odd", "half-up", "half-down", "half-toward-zero")
OCTAVES_ABOVE = 3


def magnitudes(format) -> np.ndarray:
    """The nonnegative values of `format` in ascending order, as if three more octaves had no upper end."""
    if isinstance(format, FixedFormat):
        top = 2 ** (format.integer_bits + format.fraction_bits + OCTAVES_ABOVE)
        return np.arange(top + 1) * 2.0**-format.fraction_bits
    p = format.precision
    per_octave = np.arange(2 ** (p - 1), 2**p, dtype=np.float64)
    subnormals = np.arange(0, 2 ** (p - 1), dtype=np.float64) * 2.0 ** (format.emin - p + 1)
    top = int(np.floor(np.log2(format.max))) + OCTAVES_ABOVE
    octaves = [per_octave * 2.0 ** (e - p + 1) for e in range(format.emin, top + 1)]
    return np.concatenate([subnormals, *octaves])


def round_by_enumeration(x: np.ndarray, format, mode: str, table: np.ndarray) -> np.ndarray:
    """Round float64 `x`, each below the last value of `table`, by its two neighbours there."""
    size = np.where(np.isfinite(x), np.abs(x), 0.0)
    low = np.searchsorted(table, size, side="right") - 1
    # Consecutive values have consecutive significands, so the place in the table has the same parity.
    return _choose(x, table[low], table[low + 1], low % 2 == 1, format, mode)


def round_by_quantum(x: np.ndarray, format, mode: str) -> np.ndarray:
    """Round float64 `x` of at most 24 significant bits by its two neighbours, found with its quantum."""
    size = np.where(np.isfinite(x), np.abs(x), 0.0)
    exponent = np.frexp(np.where(size == 0, 1.0, size))[1] - 1
    if isinstance(format, FixedFormat):
        quantum = np.full_like(size, 2.0**-format.fraction_bits)
    else:
        quantum = np.ldexp(1.0, np.maximum(exponent, format.emin) - format.precision + 1)
    whole = np.floor(size / quantum)
    return _choose(x, whole * quantum, (whole + 1) * quantum, whole % 2 == 1, format, mode)


def _choose(x: np.ndarray, below: np.ndarray, above: np.ndarray, odd: np.ndarray, format, mode: str) -> np.ndarray:
    """Choose between the neighbours of |x| as `mode` says, then apply range, sign and special values."""
    negative = np.signbit(x)
    size = np.where(np.isfinite(x), np.abs(x), 0.0)
    exact = size == below
    to_low, to_high = size - below, above - size  # exact: both are whole multiples of a quantum of x
    away = {
        "nearest": (to_high < to_low) | ((to_high == to_low) & odd),
        "nearest-away": to_high <= to_low,
        "toward-zero": np.zeros_like(odd),
        "up": ~negative,
        "down": negative,
        "to-odd": ~odd,
        "half-up": (to_high < to_low) | ((to_high == to_low) & ~negative),
        "half-down": (to_high < to_low) | ((to_high == to_low) & negative),
        "half-toward-zero": to_high < to_low,
    }[mode] & ~exact
    rounded = np.where(negative, -1.0, 1.0) * np.where(away, above, below)
    rounded = _bounded(rounded, negative, format, mode)
    infinite = np.where(negative, -np.inf, np.inf)
    end = np.where(negative, getattr(format, "min", -format.max), format.max)
    zero = np.zeros_like(infinite)
    answers = {"inf": infinite, "saturate": end, "saturate-symmetric": end, "saturate-zero": zero}
    of_infinity = answers.get(format.overflow, np.full_like(infinite, np.nan))
    rounded = np.where(np.isinf(x), of_infinity, np.where(np.isnan(x), np.nan, rounded))
    keeps_sign = getattr(format, "has_negative_zero", False)
    return rounded if keeps_sign else np.where(rounded == 0, 0.0, rounded)


def _bounded(rounded: np.ndarray, negative: np.ndarray, format, mode: str) -> np.ndarray:
    """Apply the overflow policy to values that may lie beyond the range."""
    least = getattr(format, "min", -format.max)
    beyond = (rounded > format.max) | (rounded < least)
    end = np.where(negative, least, format.max)
    if format.overflow == "wrap":
        span = format.max - least + 2.0**-format.fraction_bits
        return np.where(beyond, (rounded - least) % span + least, rounded)
    if format.overflow in ("saturate", "saturate-symmetric"):
        return np.where(beyond, end, rounded)
    if format.overflow == "saturate-zero":
        return np.where(beyond, 0.0, rounded)
    stays = {"toward-zero": True, "to-odd": True, "up": negative, "down": ~negative}.get(mode, False)
    over = np.where(negative, -np.inf, np.inf) if format.overflow == "inf" else np.nan
    return np.where(beyond, np.where(stays, end, over), rounded)


def same_bits(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> np.ndarray:
    """Where a and b are equal, the sign of zero included, or both NaN."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b)))


def every_half(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 values of float16 or bfloat16."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def random_float32(n: int, seed: int = 0) -> torch.Tensor:
    """Random bit patterns: every exponent, subnormals, infinities and NaNs of every payload."""
    bits = np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32)
    return torch.from_numpy(bits.view(np.float32))


def hard_values(format) -> np.ndarray:
    """Each value of `format` up to three octaves above its maximum, each midpoint, and float32 neighbours, both signs.

    Formats of more than 16 bits give a sample: every binade's ends, middles and random points.
    """
    table = magnitudes(format) if format.precision <= 11 and getattr(format, "emin", 0) >= -30 else _sampled(format)
    middles = (table[:-1] + table[1:]) / 2
    points = np.concatenate([table, middles]).astype(np.float32)
    points = points[np.isfinite(points)]
    with np.errstate(over="ignore"):
        near = np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(np.inf))])
    near = near[np.isfinite(near) & (near < table[-1])]
    return np.concatenate([near, -near, np.float32([np.inf, -np.inf, np.nan])]).astype(np.float64)


def _sampled(format) -> np.ndarray:
    """Neighbouring pairs of values at both ends of every binade and at random places between."""
    p, generator = format.precision, np.random.default_rng(0)
    if isinstance(format, FixedFormat):
        whole = np.unique(generator.integers(0, 2 ** (format.precision + 1), 20_000))
        return np.unique(np.concatenate([whole, whole + 1])) * 2.0**-format.fraction_bits
    inner = generator.integers(0, 2 ** (p - 1), 16)
    steps = np.unique(np.clip(np.concatenate([[0, 1, 2 ** (p - 1) - 1], inner, inner + 1]), 0, 2 ** (p - 1) - 1))
    octaves = range(format.emin, min(127, int(np.floor(np.log2(format.max))) + OCTAVES_ABOVE) + 1)
    normal = [(2.0 ** (p - 1) + steps) * 2.0 ** (e - p + 1) for e in octaves]
    return np.unique(np.concatenate([steps * 2.0 ** (format.emin - p + 1), *normal]))
