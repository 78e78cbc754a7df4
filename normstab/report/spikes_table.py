"""The table of loss spikes in a report: which runs had some, how high, how long, and whether they came back."""

from __future__ import annotations

from collections.abc import Sequence

from normstab.assess.judgement import Judgement
from normstab.assess.points import point_words
from normstab.report.words import aligned, number

__all__ = ["spikes_table"]

MOST_ROWS = 40


def spikes_table(cells: Sequence[Judgement]) -> str:
    """Return one row per spike, the highest first; empty where no run had one."""
    found = [(cell, spike) for cell in cells for spike in cell.run.spikes]
    found.sort(key=lambda pair: -pair[1].height)
    rows = [
        (
            f"{point_words(cell.coordinates)}{' (reference)' if cell.run.is_reference else ''}",
            str(spike.step),
            number(spike.height),
            str(spike.steps),
            "yes" if spike.is_recovered else "no",
        )
        for cell, spike in found[:MOST_ROWS]
    ]
    if not rows:
        return ""
    left = len(found) - len(rows)
    more = f"\n\n{left} more, less high, {'is' if left == 1 else 'are'} left out." if left else ""
    return aligned(("cell", "from step", "height", "steps", "recovered"), rows, right=(1, 2, 3)) + more
