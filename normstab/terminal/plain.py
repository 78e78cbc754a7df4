"""Tables and lists of facts as aligned plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from normstab.experiment.scenario.outline import Outline

__all__ = ["facts_text", "outline_text", "table_text"]


def facts_text(title: str, facts: Mapping[str, str]) -> str:
    """Return a title and, below it, each fact beside its name."""
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in facts.items())])


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows under their headers, numbers to the right; texts that look like numbers stay texts."""
    table: str = tabulate(rows, headers="keys", tablefmt="simple", floatfmt="g", missingval="")
    return table


def outline_text(outline: Outline) -> str:
    """Return what a scenario would run: its facts, then its cells."""
    more = f"\n\nand {outline.left:,} more cells" if outline.left > 0 else ""
    return f"{facts_text(outline.name, outline.facts)}\n\n{table_text(outline.rows)}{more}"
