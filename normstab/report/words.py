"""Words of a report: marks of verdicts, numbers, commands, and tables that line up in a plain editor.

Formats values that others computed; judges nothing.
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normstab.assess.expected.outcome import Outcome
from normstab.assess.points import short_precision
from normstab.assess.runs import SEED_AXES, Run
from normstab.assess.verdicts import Verdict
from normstab.experiment.scenario.checking.checks import canonical, path_of
from normstab.experiment.scenario.document import AXES, VARIANT, Scenario

__all__ = [
    "OUTCOME_MARKS",
    "aligned",
    "command_for",
    "gravity",
    "items_of",
    "number",
    "promote_command",
]

OUTCOME_MARKS = {Outcome.MET: "✔", Outcome.NOT_MET: "✘", Outcome.INCONCLUSIVE: "?", Outcome.NOT_EVALUATED: "·"}
"""One mark for each outcome of an expectation, always beside its name."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, a dash for None."""
    return "-" if value is None else f"{value:.{digits}g}"


def items_of(run: Run) -> str:
    """Return what the data of a run are."""
    return "sequences" if run.is_of_tokens else "images"


def gravity(verdict: Verdict) -> float:
    """Return how grave a verdict is for showing: INCONCLUSIVE lies between STABLE and DEGRADED."""
    return 0.5 if verdict is Verdict.INCONCLUSIVE else verdict.value


def command_for(scenario: Scenario, point: Mapping[str, Any]) -> str:
    """Return the command that runs one cell of `scenario` again, and its reference.

    Values are spelled as the scenario's file spells them; axes that the grid does not have are left alone. The outcome
    goes to `reproduced/`, so that the report at hand stays.
    """
    document = scenario.document
    includes: Sequence[Mapping[str, Any]] = document.get("include") or ()
    words = ["normstab", "run", scenario.path, "--out", "reproduced"]
    for setting in (*(f"profile={name}" for name in scenario.profiles), *scenario.overrides):
        words += ["--set", setting]
    for axis, value in point.items():
        grid = _listed((document.get("grid") or {}).get(axis))
        written = [*grid, *(v for entry in includes for v in _listed(entry.get(axis)))]
        spelled = next((v for v in written if canonical(path_of(axis), v) == value), None)
        if spelled is not None:
            is_short = bool(grid) and axis in (*AXES, VARIANT)
            words += ["--set", f"{axis}={_yaml(spelled)}" if is_short else f"grid.{axis}=[{_yaml(spelled)}]"]
    words += ["--set", "include=[]"] if includes else []
    words += ["--set", "sweep=null"] if document.get("sweep") else []
    return shlex.join(words)


def promote_command(scenario: Scenario, point: Mapping[str, Any]) -> str:
    """Return the command that finds the least that has to stay wide for the cells of a grid point to train."""
    spelled = {
        axis: short_precision(str(value)) if axis.endswith("precision") else value
        for axis, value in point.items()
        if axis not in SEED_AXES
    }
    values = ",".join(f"{axis}={value}" for axis, value in spelled.items())
    return shlex.join(["normstab", "promote", scenario.path, "--cell", values])


def _listed(values: Any) -> list[Any]:
    """Return an axis's values as a list."""
    if values is None:
        return []
    return list(values) if isinstance(values, list | tuple) else [values]


def _yaml(value: Any) -> str:
    """Return a value as YAML flow text; plain where that is safe."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_./;=-]*", value) is not None
    return str(value) if is_plain and value not in ("null", "true", "false") else json.dumps(value)


def aligned(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[int] = ()) -> str:
    """Return a Markdown table whose columns line up in a plain editor too.

    `right` are the columns of numbers. Pipes and line breaks in cells are escaped; wide characters count twice.
    """
    table = [[_cell(value) for value in row] for row in (headers, *rows)]
    widths = [max(3, *(_width(row[column]) for row in table)) for column in range(len(headers))]
    numeric = set(right)
    rule = ["-" * (w - 1) + ":" if column in numeric else "-" * w for column, w in enumerate(widths)]
    lines = [table[0], rule, *table[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            _padded(cell, w, at_right=c in numeric) for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def _cell(value: Any) -> str:
    """Return a table cell's text."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _width(text: str) -> int:
    """Return how many columns a text takes in a fixed-width font."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _padded(text: str, width: int, *, at_right: bool) -> str:
    """Return the text filled to `width` columns."""
    fill = " " * (width - _width(text))
    return fill + text if at_right else text + fill
