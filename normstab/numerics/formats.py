"""Number formats as data: floating point and fixed point, each with its overflow policy.

A format says which values exist. How a value is rounded to them is `rounding`; in what order sums are
formed is `accumulate`. Nothing here needs torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import cache

from normstab.errors import FormatError, near
from normstab.numerics.spelling.format_suffixes import FIXED_POLICIES, FLOAT_POLICIES, is_field
from normstab.numerics.spelling.typed_names import ASKED_FORMATS, OTHER_NAMES

__all__ = ["DTYPES", "FORMATS", "AnyFormat", "FixedFormat", "Format", "format_of_dtype", "parse_format"]

WIDEST_EXPONENT, WIDEST_FRACTION = 9, 23  # bits of eXmY: float64 carries the exact result of every operation
FARTHEST_EXPONENT = 2 ** (WIDEST_EXPONENT - 1) - 1
WIDEST_FIXED, FARTHEST_POINT = 31, 120  # bits of a fixed-point magnitude, and how far its point may lie outside them


@dataclass(frozen=True)
class Format:
    """A binary floating-point format (IEEE 754-2019, clause 3.3, with explicit exceptions).

    `precision` is p, the implicit bit included; the quantum of a value in binade e is 2^(e - p + 1).
    `overflow` says what a result beyond `max` becomes: infinity, NaN, or the largest finite value; a
    format has infinities exactly when its policy is `inf`. Equality ignores the name.
    """

    name: str = field(compare=False)
    precision: int
    emin: int
    emax: int
    max: float
    overflow: str = "inf"
    has_subnormals: bool = True
    has_negative_zero: bool = True

    def __hash__(self) -> int:
        # Of numbers alone: formats are keys in every call, and pickled ones keep their place.
        return hash((self.precision, self.emin, self.max))

    def __post_init__(self) -> None:
        if self.overflow not in FLOAT_POLICIES:
            raise FormatError(
                f"format {self.name!r}: unknown overflow policy {self.overflow!r}"
                f"{near(self.overflow, FLOAT_POLICIES)} ({', '.join(FLOAT_POLICIES)})"
            )
        if not (1 <= self.precision <= 53 and -1022 <= self.emin <= self.emax <= 1023 and 0 < self.max < math.inf):
            raise FormatError(f"format {self.name!r}: precision, emin, emax or max out of range")
        whole = math.ldexp(self.max, self.precision - 1 - self.emax)
        if math.frexp(self.max)[1] != self.emax + 1 or whole != int(whole):
            raise FormatError(
                f"format {self.name!r}: max {self.max!r} is no value of {self.precision} bits and exponent {self.emax}"
            )
        is_binary64 = (self.precision, self.emin, self.emax) == (53, -1022, 1023)
        if not is_binary64 and (
            self.precision > WIDEST_FRACTION + 1 or min(self.emin, -self.emax) < -FARTHEST_EXPONENT
        ):
            raise FormatError(
                f"format {self.name!r}: float64 cannot carry the operations of {self.precision} bits and exponents "
                f"{self.emin} .. {self.emax}; allowed: {WIDEST_FRACTION + 1} bits, exponents within {FARTHEST_EXPONENT}"
            )

    @property
    def min_normal(self) -> float:
        """The least positive normal value, 2^emin."""
        return 2.0**self.emin

    @property
    def min_subnormal(self) -> float:
        """The least positive value, 2^(emin - p + 1); 2^emin without subnormals."""
        return 2.0 ** (self.emin - self.precision + 1) if self.has_subnormals else self.min_normal

    @property
    def fits_float32(self) -> bool:
        """Whether float32 has every value, each in the binade that it has there."""
        return self.precision <= 24 and self.emin >= -126 and self.emax <= 127

    @property
    def is_identity(self) -> bool:
        """Whether every float64 is in the format, so that nothing is ever rounded (fp64)."""
        is_whole = self.has_subnormals and self.has_negative_zero
        return self.precision == 53 and self.emax >= 1023 and self.overflow == "inf" and is_whole

    def __str__(self) -> str:
        return _spelled_float(self)


@dataclass(frozen=True)
class FixedFormat:
    """Fixed point: k 2^-F, two's complement (-2^(I+F) <= k < 2^(I+F)) or unsigned (0 <= k < 2^(I+F)); no -0, no inf.

    I or F may be negative: the point then lies outside the I + F bits. A NaN stays NaN, so that a failure remains
    visible. `overflow`: `saturate`, the nearer end; `saturate-symmetric`, the same with -max for the least value;
    `saturate-zero`, 0; `wrap`, k modulo 2^(I+F+1), unsigned 2^(I+F). Equality ignores the name.
    """

    name: str = field(compare=False)
    integer_bits: int
    fraction_bits: int
    overflow: str = "saturate"
    is_signed: bool = True

    def __hash__(self) -> int:
        return hash((self.integer_bits, self.fraction_bits))

    def __post_init__(self) -> None:
        if self.overflow not in FIXED_POLICIES:
            raise FormatError(
                f"format {self.name!r}: unknown overflow policy {self.overflow!r} for fixed point"
                f"{near(self.overflow, FIXED_POLICIES)} ({', '.join(FIXED_POLICIES)})"
            )
        if not 1 <= self.precision <= WIDEST_FIXED or max(self.integer_bits, self.fraction_bits) > FARTHEST_POINT:
            raise FormatError(
                f"format {self.name!r}: qI.F and uI.F need 1 <= I + F <= {WIDEST_FIXED}, I and F up to {FARTHEST_POINT}"
            )

    @property
    def precision(self) -> int:
        """Bits of the magnitude, I + F."""
        return self.integer_bits + self.fraction_bits

    @property
    def max(self) -> float:
        """The largest value, 2^I - 2^-F."""
        return 2.0**self.integer_bits - 2.0**-self.fraction_bits

    @property
    def min(self) -> float:
        """The least value: -2^I, -max where saturation is symmetric, 0 unsigned."""
        if not self.is_signed:
            return 0.0
        return -self.max if self.overflow == "saturate-symmetric" else -(2.0**self.integer_bits)

    @property
    def min_subnormal(self) -> float:
        """The least positive value, the quantum 2^-F."""
        return 2.0**-self.fraction_bits

    @property
    def fits_float32(self) -> bool:
        """Whether float32 has every value."""
        return self.precision <= 24

    @property
    def is_identity(self) -> bool:
        """Never: fixed point always rounds."""
        return False

    def __str__(self) -> str:
        plain = f"{'q' if self.is_signed else 'u'}{self.integer_bits}.{self.fraction_bits}"
        return plain if self.overflow == "saturate" else f"{plain}:{self.overflow}"


AnyFormat = Format | FixedFormat  # what every function that takes a format accepts


@cache
def format_of_dtype(dtype: object) -> Format | None:
    """Return the format of a dtype of torch, which may be given by its name; None where it is not one of floats."""
    return DTYPES.get(str(dtype).removeprefix("torch."))


def _ieee(name: str, exponent_bits: int, fraction_bits: int) -> Format:
    """Return eXmY: the IEEE 754 interchange layout with X exponent and Y trailing significand bits."""
    p, emax = fraction_bits + 1, 2 ** (exponent_bits - 1) - 1
    return Format(name, p, 1 - emax, emax, (2.0 - 2.0 ** (1 - p)) * 2.0**emax)


# Sources: IEEE 754-2019 table 3.5 (fp16 fp32 fp64); OCP OFP8 1.0 (e4m3fn, e5m2) and OCP MX 1.0 (e3m2, e2m3,
# e2m1: all codes finite); the fnuz pair: Noune et al. 2022, as in ONNX and torch; tf32: NVIDIA A100.
FORMATS: dict[str, Format] = {
    "fp64": _ieee("fp64", 11, 52),
    "fp32": _ieee("fp32", 8, 23),
    "tf32": _ieee("tf32", 8, 10),
    "fp16": _ieee("fp16", 5, 10),
    "bf16": _ieee("bf16", 8, 7),
    "e4m3fn": Format("e4m3fn", 4, -6, 8, 448.0, overflow="nan"),
    "e5m2": _ieee("e5m2", 5, 2),
    "e4m3fnuz": Format("e4m3fnuz", 4, -7, 7, 240.0, overflow="nan", has_negative_zero=False),
    "e5m2fnuz": Format("e5m2fnuz", 3, -15, 15, 57344.0, overflow="nan", has_negative_zero=False),
    "e3m4": _ieee("e3m4", 3, 4),
    "e2m3": Format("e2m3", 4, 0, 2, 7.5, overflow="saturate"),
    "e3m2": Format("e3m2", 3, -2, 4, 28.0, overflow="saturate"),
    "e2m1": Format("e2m1", 2, 0, 2, 6.0, overflow="saturate"),
}

# The format whose numbers a dtype of torch, by its name, holds. The one such table.
DTYPES = {
    name: FORMATS[preset]
    for name, preset in zip(
        ("float16", "bfloat16", "float32", "float64"), ("fp16", "bf16", "fp32", "fp64"), strict=True
    )
}

GRAMMAR = (
    f"a preset, eXmY with 2 <= X <= {WIDEST_EXPONENT} and 1 <= Y <= {WIDEST_FRACTION}, "
    f"qI.F or uI.F with 1 <= I + F <= {WIDEST_FIXED}"
)
_FLOAT_NAME = re.compile(r"e([0-9]{1,3})m([0-9]{1,3})\Z")
_FIXED_NAME = re.compile(r"([qu])(-?[0-9]{1,3})\.(-?[0-9]{1,3})\Z")


def parse_format(text: str | AnyFormat) -> AnyFormat:
    """Return the format that `text` names: `NAME[:POLICY][:flush]`; a format passes through.

    NAME is a preset (they win over the grammar), `eXmY`, `qI.F` or `uI.F`, or a preset's name elsewhere (`float16`).
    Surrounding blanks and letter case do not matter. After `:flush` (no subnormals) fields may follow that no name
    has, as formats made by hand print them: `:p=2`, `:emin=-9`, `:max=120.0`, `:unsigned-zero`.
    Raises FormatError, a ValueError, with what was found and what is allowed.
    """
    if isinstance(text, Format | FixedFormat):
        return text
    if not isinstance(text, str):
        raise FormatError(f"a format is a string or a Format, not {type(text).__name__}: {text!r}")
    name, *suffixes = text.strip().lower().split(":")
    found = FORMATS.get(OTHER_NAMES.get(name, name)) or _from_grammar(name)
    if found is None and name in ASKED_FORMATS:
        raise FormatError(f"{name!r} is not one format; did you mean {ASKED_FORMATS[name]}?")
    if found is None:
        presets = ", ".join(FORMATS)
        raise FormatError(f"unknown format {text!r}{near(name, FORMATS)}; allowed: {GRAMMAR} ({presets})")
    allowed = FIXED_POLICIES if isinstance(found, FixedFormat) else FLOAT_POLICIES
    if suffixes and suffixes[0] in allowed:
        found = replace(found, overflow=suffixes.pop(0))
    if isinstance(found, Format) and suffixes and all(is_field(suffix) for suffix in suffixes):
        return _with_fields(found, suffixes)
    if suffixes:
        raise FormatError(
            f"format {text!r}: unknown overflow policy {suffixes[0]!r}{near(suffixes[0], allowed)} "
            f"({', '.join(allowed)})"
        )
    return found


def _with_fields(found: Format, suffixes: list[str]) -> Format:
    """Return `found` with the fields that `suffixes` say; its exponent follows from its max."""
    p, emin, largest = found.precision, found.emin, found.max
    for suffix in suffixes:
        key, _, value = suffix.partition("=")
        p, emin = (int(value) if key == "p" else p), (int(value) if key == "emin" else emin)
        largest = float(value) if key == "max" else largest
    return replace(
        found,
        precision=p,
        emin=emin,
        emax=math.frexp(largest)[1] - 1,
        max=largest,
        has_subnormals=found.has_subnormals and "flush" not in suffixes,
        has_negative_zero=found.has_negative_zero and "unsigned-zero" not in suffixes,
    )


def _from_grammar(name: str) -> AnyFormat | None:
    """Return the eXmY, qI.F or uI.F format called `name`, or None when it is not one."""
    if match := _FLOAT_NAME.match(name):
        exponent_bits, fraction_bits = int(match[1]), int(match[2])
        if 2 <= exponent_bits <= WIDEST_EXPONENT and 1 <= fraction_bits <= WIDEST_FRACTION:
            return _ieee(name, exponent_bits, fraction_bits)
    if match := _FIXED_NAME.match(name):
        integer_bits, fraction_bits = int(match[2]), int(match[3])
        if 1 <= integer_bits + fraction_bits <= WIDEST_FIXED and max(integer_bits, fraction_bits) <= FARTHEST_POINT:
            return FixedFormat(name, integer_bits, fraction_bits, is_signed=match[1] == "q")
    return None


def _spelled_float(found: Format) -> str:
    """Return the canonical name: a preset or eXmY, with `:policy`, `:flush` and fields where they differ from it."""
    flushes = not found.has_subnormals
    whole = replace(found, has_subnormals=True)
    for name, preset in FORMATS.items():
        for policy in (preset.overflow, found.overflow):
            if replace(preset, overflow=policy) == whole:
                return name + ("" if policy == preset.overflow else f":{policy}") + (":flush" if flushes else "")
    exponent_bits = min(max(found.emax.bit_length() + 1, 2), WIDEST_EXPONENT)
    name = f"e{exponent_bits}m{max(found.precision - 1, 1)}"
    base = FORMATS.get(name) or _ieee(name, exponent_bits, max(found.precision - 1, 1))
    policy = "" if found.overflow == base.overflow else f":{found.overflow}"
    fields = [
        "flush" if flushes else "",
        "" if found.precision == base.precision else f"p={found.precision}",
        "" if found.emin == base.emin else f"emin={found.emin}",
        "" if found.max == base.max else f"max={found.max!r}",
        "" if found.has_negative_zero == base.has_negative_zero else "unsigned-zero",
    ]
    return name + policy + "".join(f":{field}" for field in fields if field)
