"""Which dtype a network sees: the 16-bit one whose numbers hold those of its precision, or none.

None means that simulated numbers live in float32 tensors and that casts change nothing. Nothing here computes.
"""

from __future__ import annotations

import torch

from normstab.numerics.formats import AnyFormat, Format
from normstab.numerics.precision import Precision
from normstab.numerics.readable.reference import holds

__all__ = ["fits_within", "shown_dtype", "why_not_shown"]

# float16 before bfloat16: formats of 8 bits fit both.
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
# What leaves an operation in a format of its own, and is then stored by the network.
STORED_ROLES = ("square", "sum", "variance", "reciprocal", "gradient", "parameter")
# The significands of fp32 and tf32: with float32's exponents, what a network sees as float32 as it is.
FLOAT32_BITS = (24, 11)


def shown_dtype(precision: Precision) -> torch.dtype | None:
    """Return the 16-bit dtype that holds every number which `precision` stores; None where there is none."""
    if precision.is_native or precision.casts == "ignore":
        return None
    stored = [precision.format(), *(precision.format(role) for role in STORED_ROLES)]
    return next((dtype for dtype in SIXTEEN_BITS if all(_fits(format, dtype) for format in stored)), None)


def fits_within(precision: Precision, dtype: torch.dtype | None) -> torch.dtype | None:
    """Return `dtype`, of the network, where it holds every number that a module's own `precision` stores, else None."""
    if dtype is None or shown_dtype(precision) is None:
        return None
    stored = (precision.format(), *(precision.format(role) for role in STORED_ROLES))
    return dtype if all(_fits(format, dtype) for format in stored) else None


def why_not_shown(precision: Precision) -> str:
    """Return why a narrow floating format is simulated without casts, though they were to be honoured, or ""."""
    if precision.is_native or precision.casts == "ignore" or shown_dtype(precision) is not None:
        return ""
    format = precision.format()
    if not isinstance(format, Format) or not format.fits_float32 or _is_float32(format):
        return ""
    return f"casts change nothing here: no 16-bit dtype holds every number of {precision}"


def _is_float32(format: Format) -> bool:
    """Whether a format is fp32, or what products make of float32 (tf32), whatever happens at its ends."""
    return format.precision in FLOAT32_BITS and (format.emin, format.emax) == (-126, 127)


def _fits(format: AnyFormat, dtype: torch.dtype) -> bool:
    """Whether `dtype` has every number of a floating format."""
    return isinstance(format, Format) and holds(dtype, format)
