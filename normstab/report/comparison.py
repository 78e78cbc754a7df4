"""A comparison of two directories as text (aligned tables, readable as Markdown) and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from normstab.assess.compare import SHOWN, Comparison, Gate, PairedCell
from normstab.assess.expected.contrast import worded
from normstab.assess.points import point_words
from normstab.experiment.records.files import jsonable
from normstab.report.words import aligned

__all__ = ["comparison_json", "comparison_text"]


def comparison_text(found: Comparison, gates: Sequence[Gate]) -> str:
    """Return the table of paired cells, the changes of accuracy with their intervals, and the gates that fail."""
    metrics = list(dict.fromkeys([*SHOWN, *(gate.metric for gate in gates)]))
    rows = [
        (point_words(cell.coordinates), _verdicts(cell), *(_change(cell, m) for m in metrics)) for cell in found.cells
    ]
    parts = [aligned(("cell", "verdict", *metrics), rows)]
    parts += [f"only in A: {point}" for point in found.only_before] + [
        f"only in B: {point}" for point in found.only_after
    ]
    parts += [] if gates else [f"no record: {name}" for name in found.missing]
    changes = {point: change for point, change in found.changes.items() if change.estimate != 0.0}
    unchanged = len(found.changes) - len(changes)
    parts += [f"accuracy unchanged at {unchanged} grid points"] if unchanged else []
    for point, change in changes.items():
        is_noise = change.low <= 0.0 <= change.high
        ends = f"{100 * change.low:+.2f} to {100 * change.high:+.2f}"
        note = ", which noise explains" if is_noise else ""
        parts.append(f"{point}: accuracy {100 * change.estimate:+.2f} points ({ends}, 95 %){note}")
    failures = found.failures
    parts += [f"FAILED: {line}" for line in failures]
    if gates and not failures:
        parts.append(f"every gate holds: {', '.join(map(str, gates))}")
    return "\n".join(parts)


def _verdicts(cell: PairedCell) -> str:
    """Return the verdict, or both where it changed."""
    before, after = cell.verdicts
    return before if before == after else f"{before} -> {after}"


def _change(cell: PairedCell, metric: str) -> str:
    """Return a metric's value in both, or once where it did not change."""
    shown = ["-" if side[metric] is None else worded(metric, side[metric] or 0.0) for side in (cell.before, cell.after)]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} -> {shown[1]}"


def comparison_json(found: Comparison) -> str:
    """Return the comparison as JSON."""
    document = {
        "version": 1,
        "cells": [
            {
                "coordinates": dict(cell.coordinates),
                "verdicts": list(cell.verdicts),
                "before": dict(cell.before),
                "after": dict(cell.after),
                "failed": [str(gate) for gate in cell.failed],
            }
            for cell in found.cells
        ],
        "only_in_a": list(found.only_before),
        "only_in_b": list(found.only_after),
        "accuracy_changes": {
            point: {"estimate": change.estimate, "low": change.low, "high": change.high}
            for point, change in found.changes.items()
        },
        "missing": list(found.missing),
        "failures": found.failures,
    }
    return json.dumps(jsonable(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
