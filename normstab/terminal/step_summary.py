"""The summary of a run for a CI job's page: headline, expectations and verdicts, no images, below GitHub's limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from normstab.assess.assessment import Assessment
from normstab.errors import NormstabError
from normstab.report import sections
from normstab.report.escaping import inert

__all__ = ["LIMIT", "append_summary", "step_summary"]

LIMIT = 1024 * 1024
"""Bytes of a step's summary. Source: GitHub's documentation of workflow commands, "Adding a job summary"."""


def append_summary(path: Path, found: Sequence[Assessment]) -> None:
    """Append the summary to the file of the job's step; raise NormstabError where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(step_summary(found))
    except OSError as error:
        raise NormstabError(f"GITHUB_STEP_SUMMARY: {path}: cannot write: {error.strerror or error}") from error


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
    return inert("\n".join(lines)) + "\n"
