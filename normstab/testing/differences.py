"""Two tensors compared: the largest error, its index, ulps, and the value with its neighbours in the format.

Pure; it judges by a Tolerance that it is given.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from normstab.numerics.formats import AnyFormat, FixedFormat
from normstab.numerics.readable.reference import holds
from normstab.numerics.rounding import cast
from normstab.testing.tolerances import Tolerance

__all__ = ["Difference", "compare"]

# The narrowest container that shows the bits of a format.
CONTAINERS = ((torch.float16, ">e", 4), (torch.bfloat16, "", 4), (torch.float32, ">f", 8), (torch.float64, ">d", 16))


@dataclass(frozen=True)
class Difference:
    """How a tensor found differs from the one expected; the worst element in detail."""

    name: str
    mismatched: int
    total: int
    index: tuple[int, ...]
    found: float
    expected: float
    error: float
    relative: float
    ulps: float
    relative_index: tuple[int, ...]
    tolerance: Tolerance
    bits: str

    @property
    def passed(self) -> bool:
        """Whether every element lies within the tolerance."""
        return self.mismatched == 0

    def __str__(self) -> str:
        share = 100 * self.mismatched / max(self.total, 1)
        return (
            f"{self.name}: {self.mismatched} / {self.total} elements differ ({share:.1f}%)\n"
            f"Greatest absolute difference: {self.error:.6g} at index {self.index} "
            f"(up to {self.tolerance.atol:.3g} allowed)\n"
            f"Greatest relative difference: {self.relative:.6g} at index {self.relative_index} "
            f"(up to {self.tolerance.rtol:.3g} allowed)\n"
            f"There: found {self.found:.9g}, expected {self.expected:.9g}, {self.ulps:.4g} ulps\n"
            f"{self.bits}\n"
            f"Tolerance: {self.tolerance.derivation}"
        )


def compare(name: str, found: Tensor, expected: Tensor, format: AnyFormat, tolerance: Tolerance) -> Difference:
    """Compare `found` with `expected`, of one shape, in float64; NaN equals NaN, infinities by sign."""
    a, b = found.detach().double().cpu().reshape(-1), expected.detach().double().cpu().reshape(-1)
    error = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    error = torch.where(error.isnan(), torch.inf, error)
    relative = torch.where(error == 0, 0.0, error / b.abs())
    allowed = tolerance.atol + tolerance.rtol * b.abs()
    is_wrong = ~(error <= torch.where(allowed.isfinite(), allowed, 0.0))
    worst = int(error.argmax()) if error.numel() else 0
    worst_relative = (
        int(relative.nan_to_num(0.0, posinf=torch.finfo(torch.float64).max).argmax()) if error.numel() else 0
    )
    value, wanted = (float(a[worst]), float(b[worst])) if error.numel() else (0.0, 0.0)
    return Difference(
        name=name,
        mismatched=int(is_wrong.sum()),
        total=error.numel(),
        index=_place(worst, expected.shape),
        found=value,
        expected=wanted,
        error=float(error[worst]) if error.numel() else 0.0,
        relative=float(relative[worst_relative]) if error.numel() else 0.0,
        ulps=_ulps(value, wanted, format),
        relative_index=_place(worst_relative, expected.shape),
        tolerance=tolerance,
        bits=_neighbours(value, format),
    )


def _place(flat: int, shape: torch.Size) -> tuple[int, ...]:
    """Return the index of the element `flat` of a tensor of `shape`."""
    index = []
    for size in reversed(shape):
        flat, i = divmod(flat, max(size, 1))
        index.append(i)
    return tuple(reversed(index))


def _ulps(found: float, expected: float, format: AnyFormat) -> float:
    """Return the distance in quanta of the format at the expected value."""
    if found == expected or (found != found and expected != expected):
        return 0.0
    exponent = torch.frexp(torch.tensor(expected, dtype=torch.float64)).exponent.item() - 1
    least = float(format.min_subnormal)
    quantum = least if isinstance(format, FixedFormat) else max(2.0 ** (exponent - format.precision + 1), least)
    return abs(found - expected) / quantum


def _neighbours(value: float, format: AnyFormat) -> str:
    """Return the value in hex, in a container of the format, between its neighbours."""
    x = torch.tensor([value], dtype=torch.float64)
    little = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)
    below = cast(torch.nextafter(x, little[1:]), format, rounding="down") if x.isfinite() else x
    above = cast(torch.nextafter(x, little[:1]), format, rounding="up") if x.isfinite() else x
    shown = [f"{_hex(float(v), format)} ({float(v):.9g})" for v in (below, x, above)]
    return f"Its bits: {shown[1]}; neighbours in {format}: {shown[0]} and {shown[2]}"


def _hex(value: float, format: AnyFormat) -> str:
    """Return the bits of `value` in the narrowest container of the format, or of float64 if it is no value of it."""
    for dtype, code, digits in CONTAINERS:
        x = torch.tensor([value], dtype=torch.float64)
        if not holds(dtype, format) or not bool((x.to(dtype).double() == x).all() | x.isnan().all()):
            continue
        if dtype == torch.bfloat16:
            return f"0x{struct.pack('>f', value).hex().upper()[:digits]}"
        return f"0x{struct.pack(code, value).hex().upper()}"
    return f"0x{struct.pack('>d', value).hex().upper()}"
