"""Statements: an expectation in one plain sentence, as the report and the test results show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from normstab.assess.points import value_words
from normstab.experiment.scenario.expectation import (
    AnyExpectation,
    BoundExpectation,
    IdenticalExpectation,
    OrderExpectation,
    RecoveryExpectation,
    VerdictExpectation,
    WithinExpectation,
)

__all__ = ["point_text", "statement_of"]


def point_text(point: Mapping[str, Any] | None) -> str:
    """Return a selector as `norm l2, input_scale 256`; lists are joined by `or`."""
    return ", ".join(f"{axis} {_value_text(axis, value)}" for axis, value in (point or {}).items()) or "every cell"


def _value_text(axis: str, value: Any) -> str:
    """Return one value, or the alternatives of a list."""
    return " or ".join(value_words(axis, v) for v in (value if isinstance(value, list | tuple) else [value]))


def statement_of(expectation: Any) -> str:
    """Return what `expectation` says, in words."""
    return SENTENCES[type(expectation)](expectation)


def _metric(name: str, at: float | None) -> str:
    """Return a metric's name with the share of the run at which it is read."""
    shown = name.replace("_", " ")
    return shown if at is None else f"{shown} after {100 * at:g} % of the run"


def _where(where: Mapping[str, Any] | None) -> str:
    """Return ` at ...` for a selector that narrows both sides."""
    return f" at {point_text(where)}" if where else ""


def _verdict(found: VerdictExpectation) -> str:
    return f"{point_text(found.where)}: {' or '.join(found.verdicts)}"


def _bound(found: BoundExpectation) -> str:
    low = [] if found.at_least is None else [f"at least {found.at_least:g}"]
    high = [] if found.at_most is None else [f"at most {found.at_most:g}"]
    return f"{point_text(found.where)}: {_metric(found.metric, found.at)} {' and '.join(low + high)}"


def _order(found: OrderExpectation) -> str:
    lead = f" by at least {found.by}" if found.by.amount else ""
    sides = f"{point_text(found.better)} beats {point_text(found.worse)}"
    return f"{sides} in {_metric(found.metric, found.at)}{lead}{_where(found.where)}"


def _within(found: WithinExpectation) -> str:
    of = "its reference" if found.of == "reference" or isinstance(found.of, str) else point_text(found.of)
    return f"{point_text(found.where)}: {_metric(found.metric, found.at)} within {found.within} of {of}"


def _recovery(found: RecoveryExpectation) -> str:
    gap = f"the gap in {_metric(found.metric, found.at)} from {point_text(found.low)} to {point_text(found.high)}"
    return f"{point_text(found.recovered)} recovers at least {100 * found.at_least:g} % of {gap}{_where(found.where)}"


def _identical(found: IdenticalExpectation) -> str:
    first, second = found.identical
    return f"{point_text(first)} and {point_text(second)} end equal bit for bit{_where(found.where)}"


def _any(found: AnyExpectation) -> str:
    return "; or ".join(statement_of(inner) for inner in found.any)


SENTENCES: dict[type[Any], Callable[[Any], str]] = {
    VerdictExpectation: _verdict,
    BoundExpectation: _bound,
    OrderExpectation: _order,
    WithinExpectation: _within,
    RecoveryExpectation: _recovery,
    IdenticalExpectation: _identical,
    AnyExpectation: _any,
}
"""How each form of an expectation reads."""
