"""Number formats as data: floating point and fixed point, each with its overflow policy.

A format says which values exist. How a value is rounded to them is `rounding`; in what order sums are
formed is `accumulate`. Nothing here needs torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cache

from normstab.errors import FormatError, near
from normstab.numerics.spelling.typed_names import ASKED_FORMATS, OTHER_NAMES

__all__ = ["DTYPES", "FORMATS", "AnyFormat", "FixedFormat", "Format", "format_of_dtype", "parse_format"]

FLOAT_POLICIES = ("inf", "nan", "saturate")
FIXED_POLICIES = ("saturate", "wrap")


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
        if not (1 <= self.precision <= 53 and self.emin <= self.emax and self.max > 0):
            raise FormatError(f"format {self.name!r}: precision, emin, emax or max out of range")

    @property
    def min_normal(self) -> float:
        """The least positive normal value, 2^emin."""
        return 2.0**self.emin

    @property
    def min_subnormal(self) -> float:
        """The least positive value, 2^(emin - p + 1); 2^emin without subnormals."""
        return 2.0 ** (self.emin - self.precision + 1) if self.has_subnormals else self.min_normal

    @property
    def is_identity(self) -> bool:
        """Whether every float64 is in the format, so that nothing is ever rounded (fp64)."""
        return self.precision == 53 and self.emax >= 1023 and self.overflow == "inf"

    def __str__(self) -> str:
        return _spelled(self.name, self, FORMATS)


@dataclass(frozen=True)
class FixedFormat:
    """Two's complement fixed point: k 2^-F with -2^(I+F) <= k < 2^(I+F); no -0, no infinity.

    A NaN stays NaN, so that a failure remains visible. `overflow` is `saturate`, the nearer end, or `wrap`,
    k modulo 2^(I+F+1). Equality ignores the name.
    """

    name: str = field(compare=False)
    integer_bits: int
    fraction_bits: int
    overflow: str = "saturate"

    def __hash__(self) -> int:
        return hash((self.integer_bits, self.fraction_bits))

    def __post_init__(self) -> None:
        if self.overflow not in FIXED_POLICIES:
            raise FormatError(
                f"format {self.name!r}: unknown overflow policy {self.overflow!r} for fixed point"
                f"{near(self.overflow, FIXED_POLICIES)} ({', '.join(FIXED_POLICIES)})"
            )
        if not 1 <= self.precision <= 24 or min(self.integer_bits, self.fraction_bits) < 0:
            raise FormatError(f"format {self.name!r}: qI.F needs I >= 0, F >= 0 and 1 <= I + F <= 24")

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
        """The least (most negative) value, -2^I."""
        return -(2.0**self.integer_bits)

    @property
    def min_subnormal(self) -> float:
        """The least positive value, the quantum 2^-F."""
        return 2.0**-self.fraction_bits

    @property
    def is_identity(self) -> bool:
        """Never: fixed point always rounds."""
        return False

    def __str__(self) -> str:
        return _spelled(self.name, self, {})


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

GRAMMAR = "a preset, eXmY with 2 <= X <= 8 and 1 <= Y <= 23, or qI.F with 1 <= I + F <= 24"
_FLOAT_NAME = re.compile(r"e(\d{1,3})m(\d{1,3})\Z")
_FIXED_NAME = re.compile(r"q(\d{1,3})\.(\d{1,3})\Z")


def parse_format(text: str | AnyFormat) -> AnyFormat:
    """Return the format that `text` names: `NAME[:inf|nan|saturate|wrap]`; a format passes through.

    NAME is a preset (they win over the grammar), `eXmY`, `qI.F`, or a preset's name elsewhere (`float16`).
    Surrounding blanks and letter case do not matter.
    Raises FormatError, a ValueError, with what was found and what is allowed.
    """
    if isinstance(text, Format | FixedFormat):
        return text
    if not isinstance(text, str):
        raise FormatError(f"a format is a string or a Format, not {type(text).__name__}: {text!r}")
    name, _, policy = text.strip().lower().partition(":")
    found = FORMATS.get(OTHER_NAMES.get(name, name)) or _from_grammar(name)
    if found is None and name in ASKED_FORMATS:
        raise FormatError(f"{name!r} is not one format; did you mean {ASKED_FORMATS[name]}?")
    if found is None:
        presets = ", ".join(FORMATS)
        raise FormatError(f"unknown format {text!r}{near(name, FORMATS)}; allowed: {GRAMMAR} ({presets})")
    if ":" not in text:
        return found
    allowed = FIXED_POLICIES if isinstance(found, FixedFormat) else FLOAT_POLICIES
    if policy not in allowed:
        raise FormatError(
            f"format {text!r}: unknown overflow policy {policy!r}{near(policy, allowed)} ({', '.join(allowed)})"
        )
    return replace(found, overflow=policy)


def _from_grammar(name: str) -> AnyFormat | None:
    """Return the eXmY or qI.F format called `name`, or None when it is not one."""
    if match := _FLOAT_NAME.match(name):
        exponent_bits, fraction_bits = int(match[1]), int(match[2])
        if 2 <= exponent_bits <= 8 and 1 <= fraction_bits <= 23:
            return _ieee(name, exponent_bits, fraction_bits)
    if match := _FIXED_NAME.match(name):
        integer_bits, fraction_bits = int(match[1]), int(match[2])
        if 1 <= integer_bits + fraction_bits <= 24:
            return FixedFormat(name, integer_bits, fraction_bits)
    return None


def _spelled(name: str, found: AnyFormat, presets: dict[str, Format]) -> str:
    """Return the canonical name: the preset of the same values, with `:policy` where it is not the usual."""
    for preset_name, preset in presets.items():
        if preset == found:
            return preset_name
    plain = name.partition(":")[0]
    if isinstance(found, FixedFormat):
        plain = f"q{found.integer_bits}.{found.fraction_bits}"
    for preset_name, preset in presets.items():
        if isinstance(found, Format) and replace(preset, overflow=found.overflow) == found:
            plain = preset_name
            break
    usual = presets.get(plain) or _from_grammar(plain)
    return plain if usual == found else f"{plain}:{found.overflow}"
