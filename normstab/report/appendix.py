"""What a report rests on, as text: the rules and constants of its verdicts, data, machine, notes of the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from normstab.assess.constants import CONSTANTS
from normstab.assess.runs import Run
from normstab.assess.verdicts import RULES
from normstab.report.escaping import one_line
from normstab.report.words import (
    aligned,
    items_of,
)

__all__ = ["constants_table", "environment_table", "notes_of", "rules_table"]


def rules_table() -> str:
    """Return the rule of every verdict, the gravest first."""
    return aligned(("verdict", "when"), [(v.marked, rule.statement) for v, rule in RULES.items()])


def constants_table(tolerance: float) -> str:
    """Return the constants of the verdicts, the scenario's tolerance in its place."""
    rows = [
        (name, f"{tolerance if name == 'tolerance' else constant.value:g}", constant.meaning)
        for name, constant in CONSTANTS.items()
    ]
    return aligned(("constant", "value", "meaning"), rows, right=(1,))


def environment_table(runs: Sequence[Run]) -> str:
    """Return what the records depend on: data, device, threads, versions; every distinct value."""
    facts: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in _facts(run):
            facts.setdefault(name, {})[value] = None
    return aligned(("fact", "value"), [(name, ", ".join(values)) for name, values in facts.items()])


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the facts of one run's record."""
    data, environment, model = run.data, run.environment, run.model
    yield "data", f"{data.name}, {data.train:,} + {data.test:,} {items_of(run)}"
    yield "data sha256", f"`{data.sha256}`"
    yield (
        "model",
        " ".join(str(part) for part in (model.get("name"), model.get("width") and f"width {model['width']}") if part),
    )
    yield "steps", f"{run.steps_per_epoch} a pass"
    yield (
        "device",
        f"{environment.device}, {environment.threads} thread(s), {environment.cpu_capability}",
    )
    if environment.look_every > 1:
        yield "looks at the device", f"every {environment.look_every} steps at most"
    yield "torch", environment.torch
    yield "numerics version", str(run.numerics_version)


def notes_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the runs' notes and unrecognised operations, each once."""
    notes = dict.fromkeys(note for run in runs for note in run.notes)
    unrecognised: dict[str, int] = {}
    for run in runs:
        for operation, count in run.unrecognised.items():
            shown = one_line(operation)
            unrecognised[shown] = unrecognised.get(shown, 0) + count
    return {"notes": [one_line(note) for note in notes], "unrecognised": unrecognised}
