"""What a scenario expects of its cells; nothing here judges.

Each form of `expect:` is a frozen dataclass, recognised by the key that only it has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from normstab.experiment.scenario.checking.field_kinds import STRICT
from normstab.experiment.scenario.verdict_table import VerdictName

__all__ = [
    "AnyExpectation",
    "BoundExpectation",
    "Expectation",
    "IdenticalExpectation",
    "OrderExpectation",
    "Quantity",
    "RecoveryExpectation",
    "Selector",
    "VerdictExpectation",
    "WithinExpectation",
    "selectors",
]


@dataclass(frozen=True)
class Quantity:
    """A difference: `pp`, points of a share (20pp is 0.20); `%`, relative to the other side; "", plain."""

    amount: float
    unit: Literal["", "pp", "%"] = ""

    @staticmethod
    def parse(text: str | float | Quantity) -> Quantity:
        """Return the quantity that `20pp`, `90%` or a number names."""
        if isinstance(text, Quantity):
            return text
        match = _QUANTITY.match(str(text))
        if match is None or isinstance(text, bool):
            raise ValueError(f"expected a number, points such as 20pp or a relative share such as 90%, found {text!r}")
        unit: Literal["", "pp", "%"] = "pp" if match[2] == "pp" else "%" if match[2] == "%" else ""
        amount = float(match[1]) / (100.0 if unit else 1.0)
        if not math.isfinite(amount):
            raise ValueError(f"expected a number that a float can hold, found {text!r}")
        return Quantity(amount, unit)

    def __str__(self) -> str:
        return f"{self.amount * (100 if self.unit else 1):.10g}{self.unit}"


_QUANTITY = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(pp|%)?\s*\Z")
QuantityField = Annotated[
    Quantity,
    BeforeValidator(Quantity.parse),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[-+]?[0-9.]+([eE][-+]?[0-9]+)?(pp|%)?$"}]}
    ),
]

# Axis -> value or list of values, as written in the file.
Selector = dict[str, Any]
Where = Annotated[Selector, Field(description="Axis: value or list of values; an axis left out matches all.")]
Cells = Annotated[Selector | None, Field(description="The cells of all sides; null: all cells.")]
Metric = Annotated[str, Field(description="A quantity of a finished cell.")]
Smoke = Annotated[bool, Field(description="Judge this one under --smoke too.")]
ClaimId = Annotated[str | None, Field(description="The id of the claim that this expectation tests.")]
At = Annotated[float | None, Field(gt=0, le=1, description="Share of the run after which to look; null: the end.")]


@dataclass(frozen=True)
class VerdictExpectation:
    """Every selected cell has one of these verdicts."""

    __pydantic_config__ = STRICT

    verdict: Annotated[VerdictName | tuple[VerdictName, ...], Field(description="One verdict, or any of a list.")]
    where: Where
    smoke: Smoke = False
    claim: ClaimId = None

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The allowed verdicts, as a tuple."""
        return (self.verdict,) if isinstance(self.verdict, str) else self.verdict


@dataclass(frozen=True)
class BoundExpectation:
    """The metric of every selected cell, pooled over seeds, lies within the bounds."""

    __pydantic_config__ = STRICT

    metric: Metric
    where: Where
    at_least: Annotated[float | None, Field(description="The lower bound.")] = None
    at_most: Annotated[float | None, Field(description="The upper bound.")] = None
    at: At = None
    smoke: Smoke = False
    claim: ClaimId = None


@dataclass(frozen=True)
class OrderExpectation:
    """The metric is better in the cells of `better` than in those of `worse` by at least `by`, paired."""

    __pydantic_config__ = STRICT

    metric: Metric
    better: Where
    worse: Where
    where: Cells = None
    by: Annotated[QuantityField, Field(description="The least difference: 20pp, 90% or a number.")] = Quantity(0.0)
    at: At = None
    smoke: Smoke = False
    claim: ClaimId = None


@dataclass(frozen=True)
class WithinExpectation:
    """The metric of the selected cells is equivalent, within the tolerance, to the reference or to cells of `of`."""

    __pydantic_config__ = STRICT

    metric: Metric
    within: Annotated[QuantityField, Field(description="The tolerance: 2pp, 5% or a number.")]
    where: Where
    of: Annotated[
        Selector | Literal["reference"], Field(description="`reference`, or axes in which the other cells differ.")
    ] = "reference"
    at: At = None
    smoke: Smoke = False
    claim: ClaimId = None


@dataclass(frozen=True)
class RecoveryExpectation:
    """The cells of `recovered` regain at least the share `at_least` of the gap from `low` to `high`.

    Low and high in numbers: of a loss the lower side is the better one.
    """

    __pydantic_config__ = STRICT

    metric: Metric
    recovered: Where
    low: Annotated[Where, Field(description="The side with the lower number: axis: value or list of values.")]
    high: Annotated[Where, Field(description="The side with the higher number: axis: value or list of values.")]
    at_least: Annotated[float, Field(description="The least share that is regained; 1 is all of it.")]
    where: Cells = None
    at: At = None
    smoke: Smoke = False
    claim: ClaimId = None


@dataclass(frozen=True)
class IdenticalExpectation:
    """The paired cells of both selectors end with bitwise equal weights and predictions."""

    __pydantic_config__ = STRICT

    identical: Annotated[tuple[Selector, Selector], Field(description="The two selectors.")]
    where: Cells = None
    smoke: Smoke = False
    claim: ClaimId = None


def _form(found: Any) -> str:
    """Return the name of the form that a plain mapping has; tags that no key can be mistaken for."""
    keys = found if isinstance(found, dict) else ()
    return next((form for key, form in _FORM_KEYS.items() if key in keys), "BoundExpectation")


_FORM_KEYS = {
    "any": "AnyExpectation",
    "verdict": "VerdictExpectation",
    "identical": "IdenticalExpectation",
    "recovered": "RecoveryExpectation",
    "better": "OrderExpectation",
    "worse": "OrderExpectation",
    "within": "WithinExpectation",
}

_Simple = Annotated[
    Annotated[VerdictExpectation, Tag("VerdictExpectation")]
    | Annotated[BoundExpectation, Tag("BoundExpectation")]
    | Annotated[OrderExpectation, Tag("OrderExpectation")]
    | Annotated[WithinExpectation, Tag("WithinExpectation")]
    | Annotated[RecoveryExpectation, Tag("RecoveryExpectation")]
    | Annotated[IdenticalExpectation, Tag("IdenticalExpectation")],
    Discriminator(_form),
]


@dataclass(frozen=True)
class AnyExpectation:
    """At least one of the listed expectations is met."""

    __pydantic_config__ = STRICT

    any: Annotated[tuple[_Simple, ...], Field(min_length=1, description="Expectations of the forms above.")]
    smoke: Smoke = False
    claim: ClaimId = None


# One expectation of any form.
Expectation = (
    VerdictExpectation
    | BoundExpectation
    | OrderExpectation
    | WithinExpectation
    | RecoveryExpectation
    | IdenticalExpectation
    | AnyExpectation
)
ExpectationField = Annotated[
    Annotated[VerdictExpectation, Tag("VerdictExpectation")]
    | Annotated[BoundExpectation, Tag("BoundExpectation")]
    | Annotated[OrderExpectation, Tag("OrderExpectation")]
    | Annotated[WithinExpectation, Tag("WithinExpectation")]
    | Annotated[RecoveryExpectation, Tag("RecoveryExpectation")]
    | Annotated[IdenticalExpectation, Tag("IdenticalExpectation")]
    | Annotated[AnyExpectation, Tag("AnyExpectation")],
    Discriminator(_form),
]

_FORMS: tuple[type[Any], ...] = (
    VerdictExpectation,
    BoundExpectation,
    OrderExpectation,
    WithinExpectation,
    RecoveryExpectation,
    IdenticalExpectation,
    AnyExpectation,
)


def form_of(plain: Any) -> type[Any]:
    """Return the dataclass of the form that a plain mapping of `expect:` has."""
    return next(form for form in _FORMS if form.__name__ == _form(plain))


def selectors(plain: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], Any]]:
    """Return each selector in a plain expectation, with its place below it."""
    found: list[tuple[tuple[str | int, ...], Any]] = []
    for key in ("where", "better", "worse", "recovered", "low", "high", "of"):
        if isinstance(plain.get(key), dict):
            found.append(((key,), plain[key]))
    both = plain.get("identical")
    if isinstance(both, list):
        found += [(("identical", index), selector) for index, selector in enumerate(both)]
    return found
