"""Specs: how a result is rounded, how a sum is formed, and the Precision string that names them all.

Frozen values and their grammar only; nothing here computes, and nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from normstab.errors import PrecisionError, near
from normstab.numerics.formats import AnyFormat, parse_format
from normstab.numerics.recipes import RECIPES
from normstab.numerics.rounding_modes import NEAREST, ROUNDINGS, Rounding
from normstab.numerics.scaled.scaled_format import Scaled
from normstab.numerics.spelling.machine_format import machine_format
from normstab.numerics.sums.accumulation import NATIVE, Accumulation

__all__ = ["FORMAT_ROLES", "NEAREST", "OPERANDS", "ROUNDINGS", "Accumulation", "Precision", "Rounding"]


# Roles of a result that may have a format of their own.
FORMAT_ROLES = ("square", "sum", "variance", "reciprocal", "gradient", "parameter", "optimizer")
# What a product takes in: activations, weights, upstream gradients.
OPERANDS = ("operand.input", "operand.weight", "operand.grad")
# Keys that take one of a few words; the first is the default.
WORDS = {
    "divide": ("direct", "reciprocal"),
    "casts": ("honour", "ignore"),
    "norm": ("each", "wide"),
    "master": ("on", "off"),
    "autocast": ("none", "cuda-fp16", "cuda-bf16"),
}
# In the order in which they are written.
KEYS = (
    *FORMAT_ROLES,
    "mean",
    "divide",
    "matmul",
    "casts",
    "norm",
    "operand",
    *OPERANDS,
    "master",
    "autocast",
    "collective",
)
_BLOCKWISE = re.compile(r"blockwise(\d{1,9})\Z")
COLLECTIVES = ("ring", "tree")


@dataclass(frozen=True)
class Collective:
    """The format in which gradients are summed over processes, and the order of that sum: `ring` or `tree`."""

    format: AnyFormat
    order: str = "ring"

    @staticmethod
    def parse(text: str | Collective) -> Collective:
        """Return what `FORMAT[:ring|tree]` names."""
        if isinstance(text, Collective):
            return text
        name, _, order = text.strip().lower().rpartition(":")
        return Collective(parse_format(name), order) if order in COLLECTIVES else Collective(parse_format(text))

    def __str__(self) -> str:
        return f"{self.format}:{self.order}"


@dataclass(frozen=True)
class Precision:
    """The spec of an arithmetic: a format per role, a rounding, how sums and means are formed, which machine.

    `compute` None is `native`: nothing is rounded and torch computes. A role that is None is in the
    compute format. `mean` is `sum`, `blockwiseK` or `welford`; `divide` is `direct` or `reciprocal`. `recipe`
    names the row of recipes that this is, with the keys that differ from it.
    Grammar: `COMPUTE[/ROUNDING[/ACCUMULATION]][;KEY=VALUE]...` or `RECIPE[;KEY=VALUE]...`.
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
    casts: str = "honour"
    norm: str = "each"
    operand_input: Scaled | None = None
    operand_weight: Scaled | None = None
    operand_grad: Scaled | None = None
    master: str = "on"
    autocast: str = "none"
    collective: Collective | None = None
    recipe: str = ""

    def __hash__(self) -> int:
        # Of two parts of the twenty, for precisions are keys in every call of a norm; equality asks for all.
        return hash((self.compute, self.rounding))

    def __post_init__(self) -> None:
        match = _BLOCKWISE.match(self.mean)
        if self.mean not in ("sum", "welford") and (match is None or int(match[1]) < 2):
            raise PrecisionError(f"unknown mean {self.mean!r} (sum, blockwiseK with K >= 2, welford)")
        for key, words in WORDS.items():
            if (word := getattr(self, key)) not in words:
                raise PrecisionError(f"unknown {key} {word!r}{near(str(word), words)} ({', '.join(words)})")
        kahan = self.accumulation.kahan or self.matmul.kahan
        if kahan and self.rounding != NEAREST:
            raise PrecisionError(f"+kahan is defined for nearest rounding only, found {self.rounding}")
        if self.compute is None and any(getattr(self, each.name) != each.default for each in fields(self)[1:]):
            raise PrecisionError("'native' rounds nothing and takes no other part; use fp32 or fp64 to add parts")
        if self.recipe and _head(self) != _head(_row(self.recipe)):
            # A recipe in another format or rounding is another machine: its keys stay, its name does not.
            object.__setattr__(self, "recipe", "")

    @property
    def is_native(self) -> bool:
        """Whether nothing is rounded and plain torch computes."""
        return self.compute is None

    @property
    def mean_block(self) -> int:
        """K of `blockwiseK`, or 0 for the other forms of the mean."""
        match = _BLOCKWISE.match(self.mean)
        return int(match[1]) if match else 0

    @property
    def wide_layers(self) -> tuple[str, ...]:
        """Which layers with a weight take their operands unquantized: "first", "last", as the recipe says."""
        return RECIPES[self.recipe].wide if self.recipe else ()

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
        head, *options = [part.strip() for part in text.strip().lower().split(";")]
        chosen = _options(text, options)
        plain = head.removeprefix("uniform:").strip()
        if plain != head:
            chosen.setdefault("casts", "ignore")
        if plain in RECIPES:
            _, *of_row = RECIPES[plain].precision.split(";")
            return replace(_parsed(text, _head(_row(plain)), {**_options(text, of_row), **chosen}), recipe=plain)
        return _parsed(text, plain, chosen)

    def __str__(self) -> str:
        if self.compute is None:
            return "native"
        usual = _spelled(_row(self.recipe) if self.recipe else Precision(self.compute))
        shown = {key: value for key, value in _spelled(self).items() if value != usual[key]}
        is_uniform = not self.recipe and shown.pop("casts", "") == "ignore"
        both = {shown.get("operand.input"), shown.get("operand.weight")}
        if len(both) == 1 and None not in both:
            del shown["operand.input"], shown["operand.weight"]
            shown["operand"] = both.pop() or ""
        head = self.recipe or f"{'uniform:' if is_uniform else ''}{_head(self)}"
        return head + "".join(f";{key}={shown[key]}" for key in KEYS if key in shown)


def _head(precision: Precision) -> str:
    """Return `COMPUTE/ROUNDING/ACCUMULATION`."""
    return f"{precision.compute}/{precision.rounding}/{precision.accumulation}"


def _spelled(precision: Precision) -> dict[str, str]:
    """Return every key with its value in words, `none` for what is not set."""
    keys = (key for key in KEYS if key != "operand")
    found = {key: getattr(precision, key.replace(".", "_")) for key in keys}
    return {key: "none" if value is None else str(value) for key, value in found.items()}


@cache
def _row(recipe: str) -> Precision:
    """Return the precision that a recipe's row spells out, without its name."""
    return Precision.parse(RECIPES[recipe].precision)


def _options(text: str, options: list[str]) -> dict[str, str]:
    """Return the `KEY=VALUE` pairs of `text` as a dict, each key known and given once.

    `operand` is written out as the two operands that it stands for, unless one of them has a key of its own.
    """
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
    both = chosen.pop("operand", None)
    return chosen if both is None else {"operand.input": both, "operand.weight": both, **chosen}


def _parsed(text: str, head: str, chosen: dict[str, str]) -> Precision:
    """Return the Precision of `COMPUTE[/ROUNDING[/ACCUMULATION]]` with the chosen keys."""
    parts = head.split("/")
    if len(parts) > 3 or not parts[0]:
        raise PrecisionError(f"precision {text!r}: expected COMPUTE[/ROUNDING[/ACCUMULATION]][;KEY=VALUE]...")
    compute, rounding, accumulation = (part.strip() for part in (*parts, "", "")[:3])
    if compute == "native":
        if len(parts) > 1 or chosen:
            raise PrecisionError(
                f"precision {text!r}: 'native' rounds nothing and takes no other part; use fp32 or fp64"
            )
        return Precision(None)
    if any(part == "" for part in parts):
        raise PrecisionError(f"precision {text!r}: an empty part between slashes")
    if compute in RECIPES:
        raise PrecisionError(f"precision {text!r}: a recipe takes ;KEY=VALUE after it, no rounding or accumulation")
    return _with_defaults(machine_format(text, compute), rounding, accumulation, chosen)


def _with_defaults(compute: AnyFormat, rounding: str, accumulation: str, chosen: dict[str, str]) -> Precision:
    """Return the Precision with what was left out filled in: nearest, and fp32 sums (fp64 for wider formats)."""
    is_wide = not compute.fits_float32
    of_keys: dict[str, Any] = {role: parse_format(chosen[role]) for role in FORMAT_ROLES if role in chosen}
    of_keys |= {key: chosen[key] for key in ("mean", *WORDS) if key in chosen}
    readers: dict[str, Callable[[str], Any]] = {**dict.fromkeys(OPERANDS, Scaled.parse), "collective": Collective.parse}
    for key in (key for key in readers if chosen.get(key, "none") != "none"):
        of_keys[key.replace(".", "_")] = readers[key](chosen[key])
    return Precision(
        compute,
        Rounding.parse(rounding or "nearest"),
        Accumulation.parse(accumulation or ("fp64" if is_wide else "fp32")),
        matmul=Accumulation.parse(chosen.get("matmul", "native"), allow_fused=True),
        **of_keys,
    )
