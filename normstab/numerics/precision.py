"""Specs: how a result is rounded, how a sum is formed, and the Precision string that names them all.

Frozen values and their grammar only; nothing here computes, and nothing here needs torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from normstab.errors import PrecisionError, near
from normstab.numerics.formats import AnyFormat, Format, parse_format

__all__ = ["ROUNDINGS", "Accumulation", "Precision", "Rounding"]

# Source: IEEE 754-2019 clause 4.3 (nearest: ties to even; to-odd: clause 4.3 note, Boldo and Melquiond 2008).
ROUNDINGS = ("nearest", "nearest-away", "toward-zero", "up", "down", "to-odd", "stochastic")
DEFAULT_RANDOM_BITS = 16
MOST_RANDOM_BITS = 32


@dataclass(frozen=True)
class Rounding:
    """A rounding mode; `bits` is R, the number of random bits of `stochastic`, and 0 for the others."""

    mode: str = "nearest"
    bits: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ROUNDINGS:
            raise PrecisionError(
                f"unknown rounding {self.mode!r}{near(self.mode, ROUNDINGS)} ({', '.join(ROUNDINGS)}, stochastic:R)"
            )
        if self.is_stochastic and not 1 <= self.bits <= MOST_RANDOM_BITS:
            raise PrecisionError(f"stochastic:R takes 1 <= R <= {MOST_RANDOM_BITS} random bits, found {self.bits}")
        if not self.is_stochastic and self.bits:
            raise PrecisionError(f"rounding {self.mode!r} takes no random bits, found ':{self.bits}'")

    @property
    def is_stochastic(self) -> bool:
        """Whether the result depends on random bits."""
        return self.mode == "stochastic"

    @staticmethod
    def parse(text: str | Rounding) -> Rounding:
        """Return the rounding that `text` names: a mode, or `stochastic:R`."""
        if isinstance(text, Rounding):
            return text
        if not isinstance(text, str):
            raise PrecisionError(f"a rounding is a string or a Rounding, not {type(text).__name__}: {text!r}")
        mode, colon, bits = text.strip().lower().partition(":")
        if colon and not bits.isdecimal():
            raise PrecisionError(f"rounding {text!r}: the number of random bits is a whole number, found {bits!r}")
        default = DEFAULT_RANDOM_BITS if mode == "stochastic" else 0
        return Rounding(mode, int(bits) if colon else default)

    def __str__(self) -> str:
        return f"{self.mode}:{self.bits}" if self.is_stochastic else self.mode


NEAREST = Rounding("nearest")
ORDERS = ("sequential", "pairwise", "blockedK", "lanesK")
_ORDER = re.compile(r"(sequential|pairwise|blocked|lanes)(\d*)\Z")


@dataclass(frozen=True)
class Accumulation:
    """How a sum is formed: `kind` is `rounded` (in `format` and `order`), `exact` or `native`.

    `order` is sequential, pairwise, blocked or lanes, the last two with `width` k; `kahan` compensates
    sequential and blocked chains; `fused` (matmul only) adds each product without rounding it first.
    """

    kind: str = "rounded"
    format: AnyFormat | None = None
    order: str = "lanes"
    width: int = 64
    kahan: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        needs_width = self.order in ("blocked", "lanes")
        if self.kind == "rounded" and needs_width != (self.width >= 1):
            raise PrecisionError(f"accumulation order {self.order!r}: blockedK and lanesK take K >= 1, the others none")
        if self.kahan and self.order not in ("sequential", "blocked"):
            raise PrecisionError(f"+kahan goes with sequential and blockedK, not with {self.order!r}")
        if self.fused and (self.kind != "rounded" or self.order not in ("sequential", "blocked") or self.kahan):
            raise PrecisionError("+fused goes with a format in sequential or blockedK order, without +kahan")

    @staticmethod
    def parse(text: str | Accumulation, *, allow_fused: bool = False) -> Accumulation:
        """Return what `native | exact | FORMAT[:ORDER[+kahan]]` names; `+fused` where it is allowed."""
        if isinstance(text, Accumulation):
            return text
        if not isinstance(text, str):
            raise PrecisionError(f"an accumulation is a string or an Accumulation, not {type(text).__name__}")
        words, fused = _without_suffix(text.strip().lower(), "+fused")
        if fused and not allow_fused:
            raise PrecisionError(f"accumulation {text!r}: +fused goes with matmul= only")
        words, kahan = _without_suffix(words, "+kahan")
        if words in ("native", "exact"):
            if kahan or fused:
                raise PrecisionError(f"accumulation {text!r}: {words} takes neither +kahan nor +fused")
            return NATIVE if words == "native" else EXACT
        name, _, order = words.rpartition(":")
        if not name or (match := _ORDER.match(order)) is None:
            if name and order not in ("inf", "nan", "saturate", "wrap"):
                raise PrecisionError(
                    f"accumulation {text!r}: unknown order {order!r}{near(order, ORDERS)} ({', '.join(ORDERS)})"
                )
            return Accumulation("rounded", parse_format(words), "lanes", 64, kahan, fused)
        width = int(match[2]) if match[2] else 0
        return Accumulation("rounded", parse_format(name), match[1], width, kahan, fused)

    def __str__(self) -> str:
        if self.kind != "rounded":
            return self.kind
        width = str(self.width) if self.width else ""
        suffix = ("+kahan" if self.kahan else "") + ("+fused" if self.fused else "")
        return f"{self.format}:{self.order}{width}{suffix}"


NATIVE = Accumulation("native", None, "", 0)
EXACT = Accumulation("exact", None, "", 0)


def _without_suffix(text: str, suffix: str) -> tuple[str, bool]:
    """Return `text` without `suffix`, and whether it had it."""
    return text.removesuffix(suffix), text.endswith(suffix)


FORMAT_ROLES = ("square", "sum", "variance", "reciprocal", "gradient", "parameter", "optimizer")
KEYS = (*FORMAT_ROLES, "mean", "divide", "matmul")
_BLOCKWISE = re.compile(r"blockwise(\d+)\Z")


@dataclass(frozen=True)
class Precision:
    """The spec of an arithmetic: a format per role, a rounding, and how sums and means are formed.

    `compute` None is `native`: nothing is rounded and torch computes. A role that is None is in the
    compute format. `mean` is `sum`, `blockwiseK` or `welford`; `divide` is `direct` or `reciprocal`.
    Grammar: `COMPUTE[/ROUNDING[/ACCUMULATION]][;KEY=VALUE]...`.
    """

    compute: AnyFormat | None
    rounding: Rounding = NEAREST
    accumulation: Accumulation = NATIVE
    square: AnyFormat | None = None
    sum: AnyFormat | None = None
    variance: AnyFormat | None = None
    reciprocal: AnyFormat | None = None
    gradient: AnyFormat | None = None
    parameter: AnyFormat | None = None
    optimizer: AnyFormat | None = None
    mean: str = "sum"
    divide: str = "direct"
    matmul: Accumulation = NATIVE

    def __post_init__(self) -> None:
        match = _BLOCKWISE.match(self.mean)
        if self.mean not in ("sum", "welford") and (match is None or int(match[1]) < 2):
            raise PrecisionError(f"unknown mean {self.mean!r} (sum, blockwiseK with K >= 2, welford)")
        if self.divide not in ("direct", "reciprocal"):
            hint = near(self.divide, ("direct", "reciprocal"))
            raise PrecisionError(f"unknown divide {self.divide!r}{hint} (direct, reciprocal)")
        kahan = self.accumulation.kahan or self.matmul.kahan
        if kahan and self.rounding != NEAREST:
            raise PrecisionError(f"+kahan is defined for nearest rounding only, found {self.rounding}")
        if self.compute is None and not self._has_only_defaults():
            raise PrecisionError("'native' rounds nothing and takes no other part; use fp32 or fp64 to add parts")

    def _has_only_defaults(self) -> bool:
        """Whether nothing but the compute format was chosen."""
        forms = (self.rounding, self.accumulation, self.mean, self.divide, self.matmul)
        return forms == (NEAREST, NATIVE, "sum", "direct", NATIVE) and all(
            getattr(self, role) is None for role in FORMAT_ROLES
        )

    @property
    def is_native(self) -> bool:
        """Whether nothing is rounded and plain torch computes."""
        return self.compute is None

    @property
    def mean_block(self) -> int:
        """K of `blockwiseK`, or 0 for the other forms of the mean."""
        match = _BLOCKWISE.match(self.mean)
        return int(match[1]) if match else 0

    def format(self, role: str | None = None) -> AnyFormat:
        """Return the format of `role`, the compute format where the role has none of its own."""
        assert self.compute is not None, "native has no format"
        found: AnyFormat | None = getattr(self, role) if role else None
        return self.compute if found is None else found

    @staticmethod
    def parse(text: str | Precision | AnyFormat) -> Precision:
        """Return the Precision that `text` names; a Precision passes, a format alone is its compute format."""
        if isinstance(text, Precision):
            return text
        if not isinstance(text, str):
            return _with_defaults(parse_format(text), "", "", {})
        head, *options = [part.strip() for part in text.strip().split(";")]
        parts = head.split("/")
        if len(parts) > 3 or not parts[0]:
            raise PrecisionError(f"precision {text!r}: expected COMPUTE[/ROUNDING[/ACCUMULATION]][;KEY=VALUE]...")
        compute, rounding, accumulation = (part.strip() for part in (*parts, "", "")[:3])
        chosen = _options(text, options)
        if compute.lower() == "native":
            if len(parts) > 1 or chosen:
                raise PrecisionError(
                    f"precision {text!r}: 'native' rounds nothing and takes no other part; use fp32 or fp64"
                )
            return Precision(None)
        if any(part == "" for part in parts):
            raise PrecisionError(f"precision {text!r}: an empty part between slashes")
        return _with_defaults(parse_format(compute), rounding, accumulation, chosen)

    def __str__(self) -> str:
        if self.compute is None:
            return "native"
        roles = {role: getattr(self, role) for role in FORMAT_ROLES if getattr(self, role) is not None}
        forms = {"mean": self.mean, "divide": self.divide, "matmul": self.matmul}
        usual = {"mean": "sum", "divide": "direct", "matmul": NATIVE}
        shown = {**roles, **{key: value for key, value in forms.items() if value != usual[key]}}
        head = f"{self.compute}/{self.rounding}/{self.accumulation}"
        return head + "".join(f";{key}={value}" for key, value in shown.items())


def _options(text: str, options: list[str]) -> dict[str, str]:
    """Return the `KEY=VALUE` pairs of `text` as a dict, each key known and given once."""
    chosen: dict[str, str] = {}
    for option in options:
        key, equals, value = (part.strip().lower() for part in option.partition("="))
        if not equals or not value:
            raise PrecisionError(f"precision {text!r}: expected KEY=VALUE after ';', found {option!r}")
        if key not in KEYS:
            raise PrecisionError(f"precision {text!r}: unknown key {key!r}{near(key, KEYS)} ({', '.join(KEYS)})")
        if key in chosen:
            raise PrecisionError(f"precision {text!r}: {key!r} is given twice")
        chosen[key] = value
    return chosen


def _with_defaults(compute: AnyFormat, rounding: str, accumulation: str, chosen: dict[str, str]) -> Precision:
    """Return the Precision with what was left out filled in: nearest, and fp32 sums (fp64 for wider formats)."""
    is_wide = isinstance(compute, Format) and compute.precision > 24
    return Precision(
        compute,
        Rounding.parse(rounding or "nearest"),
        Accumulation.parse(accumulation or ("fp64" if is_wide else "fp32")),
        **{role: parse_format(chosen[role]) for role in FORMAT_ROLES if role in chosen},
        mean=chosen.get("mean", "sum"),
        divide=chosen.get("divide", "direct"),
        matmul=Accumulation.parse(chosen.get("matmul", "native"), allow_fused=True),
    )
