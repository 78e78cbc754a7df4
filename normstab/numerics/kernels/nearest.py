"""Nearest rounding in a float32 carrier: for which formats its bits and counters come out right, and its constants.

That is so for float32 itself, and for formats with p <= 11 whose operands are in the format: 2p + 2 <= 24, and
a sum of two of them is never rounded below the least subnormal. The vector code is in lanes.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
from numba.core import codegen, config
from numpy.typing import NDArray

from normstab.numerics.formats import AnyFormat, Format, parse_format

__all__ = [
    "HALF",
    "LEAST_NORMAL",
    "LIFT",
    "LOW",
    "MAGIC",
    "PLAIN",
    "SPECIAL",
    "STYLE",
    "converts_to_half",
    "spec_table",
]

# How a float32 result is rounded: not at all (fp32), by the processor's own conversion to half (fp16, where it
# has one), or by adding and subtracting 1.5 2^(e + 24 - p), whose quantum is that of the format at exponent e.
PLAIN, HALF, MAGIC = 0, 1, 2

# A table: the style; then as float32 bits the exponent of the least normal number, what lifts an exponent e to
# e + 24 - p, the least magnitude that is special (an overflow, infinity, NaN) and the least normal number.
STYLE, LOW, LIFT, SPECIAL, LEAST_NORMAL = 0, 1, 2, 3, 4


@lru_cache(maxsize=256)
def spec_table(format: AnyFormat) -> NDArray[np.int64] | None:
    """Return the table of a format that the float32 carrier serves, or None."""
    if not isinstance(format, Format) or not (format.has_subnormals and format.has_negative_zero):
        return None
    p = format.precision
    if format == parse_format("fp32"):
        # Magnitudes are seen rounded toward zero: an infinite sum as the largest finite number.
        return np.array([PLAIN, 0, 0, _bits(np.inf) - 1, _bits(2.0**-126)], np.int64)
    if p > 11 or format.emin < -126 or format.emin - p + 1 < -149:
        return None
    quantum = 2.0 ** (np.floor(np.log2(format.max)) - p + 1)
    is_even = (format.max / quantum) % 2 == 0  # a tie above an even maximum is no overflow
    special = min(_bits(format.max + quantum / 2) + int(is_even), _bits(2.0 ** (126 - (24 - p))))
    style = HALF if format == parse_format("fp16") and converts_to_half() else MAGIC
    low, lift = (format.emin + 127) << 23, (24 - p) << 23
    return np.array([style, low, lift, special, _bits(format.min_normal)], np.int64)


def _bits(value: float) -> int:
    """Return the bits of a float32; those of infinity beyond its range."""
    return (
        int(np.float32(min(value, 3e38)).view(np.uint32)) if value < 3e38 else struct.unpack("<I", b"\0\0\x80\x7f")[0]
    )


@lru_cache(maxsize=1)
def converts_to_half() -> bool:
    """Whether kernels are compiled for a processor that converts float32 to half and back in hardware."""
    chosen = config.CPU_FEATURES  # type: ignore[attr-defined]
    features = codegen.get_host_cpu_features() if chosen is None else chosen
    return "+f16c" in features.split(",")
