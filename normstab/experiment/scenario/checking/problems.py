"""Problems of a scenario file: collected all at once, each shown with its place, line and suggestion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from normstab.errors import ScenarioError, near
from normstab.experiment.scenario.document import SECTIONS, Claim, Document, Plot, SweepDocument
from normstab.experiment.scenario.expectation import form_of
from normstab.experiment.scenario.scenario_text import MOST_SHOWN, Loc, ScenarioText, spelled

__all__ = ["MOST_FOUND", "Problem", "problems_of", "raise_problems"]

# Problems that are looked for in one file: a suggestion costs up to a millisecond.
MOST_FOUND = 60


@dataclass(frozen=True)
class Problem:
    """What is wrong at `loc` of the document; `is_key`: the key itself is wrong, not its value."""

    loc: Loc
    message: str
    is_key: bool = False


def raise_problems(problems: Sequence[Problem], text: ScenarioText) -> None:
    """Raise one ScenarioError with every problem in the file's order; return when there is none."""
    if not problems:
        return
    placed = [(text.mark(problem.loc, at_key=problem.is_key), problem) for problem in dict.fromkeys(problems)]
    placed.sort(key=lambda pair: (pair[0].place.startswith("--"), pair[0].order))
    shown = []
    for mark, problem in placed[:MOST_SHOWN]:
        where = f"{spelled(problem.loc)}: " if problem.loc else ""
        shown.append(f"{mark.place}: {where}{problem.message}{mark.shown()}")
    if len(placed) > MOST_SHOWN:
        shown.append(f"... and {len(placed) - MOST_SHOWN} more")
    number = f"{len(placed)} problems or more" if len(placed) >= MOST_FOUND else f"{len(placed)} problems"
    count = "1 problem" if len(placed) == 1 else number
    is_in_file = any(not mark.place.startswith("--") for mark, _ in placed)
    shown.append(
        f"{count}; correct the {'file' if is_in_file else 'option'}; `normstab validate {text.name}` checks it"
    )
    raise ScenarioError("\n".join(shown))


def problems_of(error: ValidationError, document: Any, *, below: Loc = ()) -> list[Problem]:
    """Return pydantic's errors as problems of `document`, whose root stands at `below` of the file.

    The alternatives of one value become one problem: "expected a valid number or 'dynamic'".
    """
    grouped: dict[Loc, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(_within(document, detail["loc"]), []).append(detail)
    return [_problem(document, loc, details, below) for loc, details in islice(grouped.items(), MOST_FOUND)]


def _within(document: Any, loc: Loc) -> Loc:
    """Return `loc` without the parts that name no value of the document (tags of unions)."""
    kept: list[str | int] = []
    for part in loc:
        is_key = isinstance(document, dict) and part in document
        if not is_key and not (isinstance(document, list) and isinstance(part, int) and part < len(document)):
            continue
        document = document[part]
        kept.append(part)
    return tuple(kept)


def _problem(document: Any, loc: Loc, details: Sequence[ErrorDetails], below: Loc) -> Problem:
    """Return the one problem that the errors at `loc` amount to."""
    kinds = {detail["type"] for detail in details}
    if "unexpected_keyword_argument" in kinds:
        allowed = _allowed_fields(document, loc[:-1])
        message = f"unknown field {loc[-1]!r}{near(str(loc[-1]), allowed)} ({', '.join(allowed)})"
        return Problem((*below, *loc), message, is_key=True)
    missing = [str(detail["loc"][-1]) for detail in details if detail["type"] in ("missing", "missing_argument")]
    if missing:
        names = ", ".join(repr(name) for name in missing)
        return Problem((*below, *loc), f"missing: {names}", is_key=True)
    expected = dict.fromkeys(_expected(detail) for detail in details)
    return Problem((*below, *loc), f"expected {' or '.join(expected)}, found {found_text(details[0]['input'])}")


_WORDS = {
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "too_short": "at least one value",
}


def _expected(detail: ErrorDetails) -> str:
    """Return what was expected, as words that follow "expected"."""
    if detail["type"] in _WORDS:
        return _WORDS[detail["type"]]
    message = detail["msg"].removeprefix("Value error, expected ").removeprefix("Value error, ")
    message = message.split(", found ")[0] if detail["type"] == "value_error" else message
    return message.removeprefix("Input should be ").removeprefix("String should ")


def found_text(value: Any) -> str:
    """Return a value as a message shows it: as JSON, and short."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _allowed_fields(document: Any, loc: Loc) -> tuple[str, ...]:
    """Return the fields that the mapping at `loc` may have."""
    found: Callable[..., Any] | type[Any]
    path = ".".join(str(part) for part in loc)
    if path in SECTIONS:
        return _names((SECTIONS[path],))
    if loc[:1] == ("claims",):
        return _names((Plot,) if loc[-1] == "plot" else (Claim,))
    if loc[:1] == ("sweep",):
        return _names((SweepDocument,))
    if loc[:1] == ("expect",):
        for part in loc:
            document = document[part]
        found = form_of(document)
        return _names((found,))
    return _names((Document,))


def _names(specs: Iterable[type[Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.name for spec in specs for part in fields(spec)))
