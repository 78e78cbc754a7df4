"""How a sum is formed: its format, order and compensation, exact or native, as a value and its grammar.

Nothing here adds, and nothing here needs torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from normstab.errors import PrecisionError, near
from normstab.numerics.formats import AnyFormat, parse_format
from normstab.numerics.spelling.format_suffixes import is_suffix

__all__ = ["EXACT", "NATIVE", "Accumulation"]


ORDERS = ("sequential", "pairwise", "blockedK", "lanesK")
_ORDER = re.compile(r"(sequential|pairwise|blocked|lanes)(\d{0,9})\Z")


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
            if name and not is_suffix(order):
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


# Sums as torch forms them, unrounded; and the exact sum, rounded once.
NATIVE = Accumulation("native", None, "", 0)
EXACT = Accumulation("exact", None, "", 0)


def _without_suffix(text: str, suffix: str) -> tuple[str, bool]:
    """Return `text` without `suffix`, and whether it had it."""
    return text.removesuffix(suffix), text.endswith(suffix)
