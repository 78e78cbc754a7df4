"""Scaled formats as data: an element format, a granule that shares a scale, the scale's format, and its rule.

Four independent axes, so that mxfp8, nvfp4 or per-row int8 are strings and not classes. How a tensor is brought
to such a format is `quantize`; which machines use which is `recipes`. Nothing here needs torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from normstab.errors import PrecisionError, near
from normstab.numerics.formats import AnyFormat, FixedFormat, parse_format
from normstab.numerics.rounding_modes import Rounding

__all__ = ["RULES", "Element", "Scaled"]

GRANULES = ("none", "tensor", "row", "block", "tile", "delayed")
"""What shares one scale; `block`, `tile` and `delayed` come with a number."""
RULES = ("max", "floor", "ceil", "even", "rceil")
"""How a scale follows from a granule's largest magnitude. Source of the last four: torchao's ScaleCalculationMode."""
SCALES = ("fp32", "e8m0")
MOST_INTEGER_BITS = 8


@dataclass(frozen=True)
class IntegerElement:
    """intN: the whole numbers -(2^(N-1) - 1) .. 2^(N-1) - 1, of which a scale makes values."""

    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= MOST_INTEGER_BITS:
            raise PrecisionError(f"element int{self.bits}: intN has 2 <= N <= {MOST_INTEGER_BITS} bits")

    @property
    def max(self) -> int:
        """The largest number, 2^(N-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def precision(self) -> int:
        """Bits of the magnitude, N - 1."""
        return self.bits - 1

    def __str__(self) -> str:
        return f"int{self.bits}"


Element = AnyFormat | IntegerElement  # in what a value is written, before its scale
_GRANULE = re.compile(r"(tensor|row|block|tile|delayed)(\d{0,9})\Z")
_INTEGER = re.compile(r"int(\d{1,9})\Z")


@dataclass(frozen=True)
class Scaled:
    """A scaled format: `ELEMENT[@GRANULE[:SCALE[:RULE]]][+zero][/ROUNDING]`.

    `granule` is tensor, row, block (`width` K elements), tile (K x K) or delayed (tensor, the scale from the
    history of K steps); `none` is an element without a scale, which is then 1. `scale` None is fp32; "e8m0" a power
    of two; a format has a second scale in fp32 for the whole tensor. `has_zero_point` is the affine form of
    intN. `rounding` None is the precision's own.
    """

    element: Element
    granule: str = "none"
    width: int = 0
    scale: AnyFormat | str = "fp32"
    rule: str = "max"
    has_zero_point: bool = False
    rounding: Rounding | None = None

    def __post_init__(self) -> None:
        if (self.granule in ("block", "tile", "delayed")) != (self.width >= 1):
            raise PrecisionError(f"granule {self.granule!r}: blockK, tileK and delayedH take K >= 1, the others none")
        if self.rule not in RULES:
            raise PrecisionError(f"unknown rule {self.rule!r}{near(self.rule, RULES)} ({', '.join(RULES)})")
        if self.scale == "e8m0" and self.rule == "max":
            raise PrecisionError("a scale in e8m0 is a power of two: rule floor, ceil, even or rceil, not max")
        if self.has_two_scales and self.rule != "max":
            raise PrecisionError(f"a scale in {self.scale} takes the rule max, found {self.rule!r}")
        if self.has_zero_point and not (isinstance(self.element, IntegerElement) and self.rule == "max"):
            raise PrecisionError("+zero goes with an intN element and the rule max")
        if self.has_zero_point and (self.scale != "fp32" or self.granule in ("none", "delayed")):
            raise PrecisionError("+zero goes with a scale in fp32 of the present tensor")
        if self.granule == "none" and isinstance(self.element, IntegerElement):
            raise PrecisionError(f"{self.element} needs a granule, such as {self.element}@row or {self.element}@tensor")

    @property
    def has_two_scales(self) -> bool:
        """Whether the scale has a format of its own, and so a second scale for the whole tensor."""
        return not isinstance(self.scale, str)

    @property
    def is_power_of_two(self) -> bool:
        """Whether every scale is a power of two, by the rule."""
        return self.rule != "max"

    @property
    def fraction_bits(self) -> int:
        """Fraction bits that an intN element has: N - 2 under a power-of-two rule, so that 1 is in its top binade."""
        return self.element.bits - 2 if isinstance(self.element, IntegerElement) and self.is_power_of_two else 0

    @property
    def largest(self) -> float:
        """The largest value of the element."""
        return float(self.element.max) * 2.0**-self.fraction_bits

    @property
    def emax(self) -> int:
        """The exponent of the element's largest binade. Source: OCP MX 1.0, 6.3."""
        if isinstance(self.element, IntegerElement):
            return self.element.bits - 2 - self.fraction_bits
        return self.element.integer_bits - 1 if isinstance(self.element, FixedFormat) else self.element.emax

    @staticmethod
    def parse(text: str | Scaled | AnyFormat) -> Scaled:
        """Return the scaled format that `text` names; a Scaled passes, a format alone has no scale."""
        if isinstance(text, Scaled):
            return text
        if not isinstance(text, str):
            return Scaled(parse_format(text))
        head, slash, rounding = text.strip().lower().partition("/")
        head = head.strip()
        has_zero_point = head.endswith("+zero")
        element, at, rest = (part.strip() for part in head.removesuffix("+zero").partition("@"))
        granule, width, scale, rule = _granule(text, rest) if at else _unscaled(element)
        return Scaled(
            _element(element), granule, width, scale, rule, has_zero_point, Rounding.parse(rounding) if slash else None
        )

    def __str__(self) -> str:
        granule = "" if self.granule == "none" else f"@{self.granule}{self.width or ''}"
        usual = "floor" if self.scale == "e8m0" else "max"
        if self.scale != "fp32" or self.rule != usual:
            granule += f":{self.scale}" + (f":{self.rule}" if self.rule != usual else "")
        zero = "+zero" if self.has_zero_point else ""
        rounding = f"/{self.rounding}" if self.rounding is not None else ""
        return f"{self.element}{granule}{zero}{rounding}"


def _unscaled(element: str) -> tuple[str, int, AnyFormat | str, str]:
    """Return granule, width, scale and rule where none is written: an integer needs a scale, the tensor's."""
    return ("tensor" if _INTEGER.match(element) else "none"), 0, "fp32", "max"


def _granule(text: str, rest: str) -> tuple[str, int, AnyFormat | str, str]:
    """Return granule, width, scale and rule of `GRANULE[:SCALE[:RULE]]`."""
    name, *options = [part.strip() for part in rest.split(":")]
    match = _GRANULE.match(name)
    if match is None:
        allowed = "tensor, row, blockK, tileK, delayedH"
        raise PrecisionError(f"scaled format {text!r}: unknown granule {name!r}{near(name, GRANULES)} ({allowed})")
    rule = options.pop() if options and options[-1] in RULES else ""
    written = ":".join(options)
    scale = _scale(text, written, has_rule=bool(rule))
    return match[1], int(match[2] or 0), scale, rule or ("floor" if scale == "e8m0" else "max")


def _scale(text: str, written: str, *, has_rule: bool) -> AnyFormat | str:
    """Return fp32, e8m0, or the format of the scales."""
    if written in SCALES:
        return written
    if not written:
        if has_rule:
            raise PrecisionError(f"scaled format {text!r}: a rule comes after a scale, as in @block32:e8m0:ceil")
        return "fp32"
    *_, last = written.split(":")
    if ":" in written and last not in ("inf", "nan", "saturate"):
        raise PrecisionError(f"scaled format {text!r}: unknown rule {last!r}{near(last, RULES)} ({', '.join(RULES)})")
    found = parse_format(written)
    if isinstance(found, FixedFormat):
        raise PrecisionError(f"scaled format {text!r}: a scale is fp32, e8m0 or a floating-point format, not {written}")
    return "fp32" if found == parse_format("fp32") else found


def _element(name: str) -> Element:
    """Return the element called `name`."""
    match = _INTEGER.match(name)
    return IntegerElement(int(match[1])) if match else parse_format(name)
