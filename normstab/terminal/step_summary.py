"""The summary of a run for a CI job's page: headline, expectations and verdicts, no images, below GitHub's limit."""

from __future__ import annotations

from collections.abc import Sequence

from normstab.assess.assessment import Assessment
from normstab.report import sections

__all__ = ["LIMIT", "step_summary"]

LIMIT = 1024 * 1024
"""Bytes of a step's summary. Source: GitHub's documentation of workflow commands, "Adding a job summary"."""


def step_summary(found: Sequence[Assessment], *, limit: int = LIMIT) -> str:
    """Return the summary of several scenarios in Markdown, at most `limit` bytes; what is cut off is said."""
    parts = [_one(assessment) for assessment in found]
    kept: list[str] = []
    room = limit - 200
    for number, part in enumerate(parts):
        room -= len(part.encode()) + 1
        if room < 0:
            kept.append(f"{len(parts) - number} more scenarios do not fit here; their reports are in `reports/`.\n")
            break
        kept.append(part)
    return "\n".join(kept)


def _one(found: Assessment) -> str:
    """Return one scenario's part."""
    lines = [f"## {found.scenario.name}", "", f"> [!{sections.alert(found)}]"]
    lines += [f"> {line}  " for line in sections.headline(found)]
    if found.expectations:
        lines += ["", sections.expectations_table(found)]
    for title, table in sections.matrices(found):
        lines += ["", f"**{title}**" if title else "", "", table]
    return "\n".join(lines) + "\n"
