"""The answer of a promotion as text, as JSON, and as a report with its plot: what stays wide, and the proof.

Pure but for `write_promotion`, which writes the report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from normstab.experiment.records.files import write_atomically
from normstab.report.pictures.svg import draw
from normstab.report.words import aligned
from normstab.search.promotion import Promotion, Trial

__all__ = ["promotion_json", "promotion_text", "write_promotion"]

MOST_ROWS = 40
MOST_NAMED = 6  # members of a set in a sentence
MOST_LINES = 20  # of a list on a terminal
MOST_SETS = 3


def promotion_json(found: Promotion) -> dict[str, Any]:
    """Return the answer as JSON data: `rules`, `members`, `tried`, `minimal`, `verdict` and what it cost."""
    return {
        "cell": found.cell,
        "by": found.by,
        "rules": found.rules,
        "members": None if found.members is None else list(found.members),
        "minimal": found.is_minimal,
        "complete": found.is_complete,
        "verdict": str(found.verdict),
        "reason": found.reason,
        "fresh_seeds": list(found.fresh_seeds),
        "share_wide": found.share,
        "extra_bytes": found.extra_bytes,
        "trainings": found.trainings,
        "forked": found.forks,
        "candidates": [{"name": each.name, "evidence": each.evidence} for each in found.candidates],
        "tried": [_trial(trial) for trial in found.tried],
        "undecided": [list(trial.members) for trial in found.undecided],
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "members": list(trial.members),
        "verdict": str(trial.verdict),
        "suffices": trial.suffices,
        "reason": trial.reason,
    }


def promotion_text(found: Promotion) -> str:
    """Return the answer for a terminal: the set, its verdict, the rules, the proof, the cost."""
    parts = [_headline(found)]
    if found.members:
        parts.append("\n".join(_first(["rules:", *(f"  {name}: {rule}" for name, rule in found.rules.items())])))
        parts.append("\n".join(_first(_proof_lines(found))))
    parts.append(_cost_sentence(found))
    if found.undecided:
        sets = "; ".join(_set_words(trial.members) for trial in found.undecided[:MOST_SETS])
        if len(found.undecided) > MOST_SETS:
            sets += f"; and {len(found.undecided) - MOST_SETS} more sets"
        is_allowed = all(trial.suffices for trial in found.undecided)
        counted = (
            "enough, as --allow INCONCLUSIVE says" if is_allowed else "not enough; --allow INCONCLUSIVE accepts them"
        )
        parts.append(f"not decided by the seeds: {sets}. They counted as {counted}.")
    return "\n\n".join(part for part in parts if part)


def _headline(found: Promotion) -> str:
    """Return what was found in one sentence."""
    if found.members is None:
        reason = "the budget ended before one was found" if not found.is_complete else found.reason
        return f"No set of the {len(found.candidates)} candidates kept in {found.wide} suffices: {reason}"
    kind = "A minimal set" if found.is_minimal else "A set, not shown to be minimal before the budget ended"
    return (
        f"{kind} to keep in {found.wide}: {_set_words(found.members)} "
        f"({len(found.members)} of {len(found.candidates)} candidates). With it: {found.verdict}"
        + (f" on fresh seeds {', '.join(map(str, found.fresh_seeds))}" if found.fresh_seeds else "")
        + f", {found.reason}"
    )


def _proof_lines(found: Promotion) -> list[str]:
    """Return one line for each member: what happens without it."""
    return [f"without {name}: {trial.verdict}, {trial.reason}" for name, trial in found.proofs.items()]


def _cost_sentence(found: Promotion) -> str:
    """Return what the answer and the search cost."""
    words = f"{len(found.tried)} sets tried, {found.trainings} trainings"
    if found.forks:
        words += f", {found.forks} of them from shortly before the first offence on"
    if not found.members:
        return words
    share, extra = 100 * found.share, 100 * found.extra_bytes
    return f"{share:.2g} % of the candidates' results are wide, which adds {extra:.2g} % to their bytes; {words}"


def _set_words(members: tuple[str, ...]) -> str:
    """Return the members of a set in a row, the first few of a large one."""
    named = members if len(members) <= MOST_NAMED + 1 else members[:MOST_NAMED]
    more = f" and {len(members) - len(named)} more" if len(named) < len(members) else ""
    return " + ".join(named) + more or "nothing"


def _first(lines: list[str]) -> list[str]:
    """Return the first lines of a long list, and where the rest is."""
    left = len(lines) - MOST_LINES
    return lines if left <= 1 else [*lines[:MOST_LINES], f"  and {left} more: see promotion.json, or --json"]


def write_promotion(found: Promotion, directory: Path) -> Path:
    """Write `report.md`, `promotion.json` and the plot to `directory`, and return the report's path."""
    write_atomically(directory / "promotion.json", json.dumps(promotion_json(found), indent=2) + "\n")
    write_atomically(directory / "plots" / "tried.svg", tried_plot(found))
    write_atomically(directory / "report.md", promotion_markdown(found))
    return directory / "report.md"


def promotion_markdown(found: Promotion) -> str:
    """Return the report as Markdown."""
    rows = [(_set_words(trial.members), trial.verdict.marked, trial.reason) for trial in found.tried]
    evidence = [(each.name, f"{each.results:,}", each.evidence) for each in found.candidates[:MOST_ROWS]]
    left = len(found.candidates) - len(evidence)
    parts = [
        f"# What has to stay wide: {found.cell}",
        f"> {_headline(found)}",
        "```yaml\nrules:\n" + "".join(f"  {json.dumps(n)}: {json.dumps(r)}\n" for n, r in found.rules.items()) + "```"
        if found.rules
        else "",
        "\n".join(f"- {line}" for line in _proof_lines(found)),
        _cost_sentence(found) + ".",
        "## Sets that were tried",
        "![sets tried](plots/tried.svg)",
        aligned(["kept wide", "verdict", "why"], rows),
        f"## Candidates (by {found.by}), the likeliest first",
        aligned(["candidate", "results", "what the failing cell lost there"], evidence, right=[1]),
        f"{left} more are in promotion.json." if left else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def tried_plot(found: Promotion) -> str:
    """Return a plot with a row per set that was tried: a square per member, in the colour of the verdict."""
    tested = [c.name for c in found.candidates if any(c.name in trial.members for trial in found.tried)][:MOST_ROWS]

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained")  # which leaves room for names as long as they are
        axes = figure.add_subplot()
        for row, trial in enumerate(found.tried):
            columns = [column for column, name in enumerate(tested) if name in trial.members]
            axes.scatter(columns, [row] * len(columns), marker="s", s=60, color=trial.verdict.colour)
            axes.text(len(tested) - 0.3, row, str(trial.verdict), va="center", fontsize=8)
        axes.set_xticks(range(len(tested)), tested, rotation=60, ha="right")
        axes.set_yticks(range(len(found.tried)), [str(row + 1) for row in range(len(found.tried))])
        axes.grid(visible=False, axis="y")  # whose lines would strike the verdicts out
        axes.set(xlim=(-0.7, len(tested) + 2.5), ylim=(len(found.tried) - 0.5, -0.5), ylabel="set tried")

    longest = max(map(len, tested), default=0)
    return draw(3.0 + 0.3 * len(tested), 1.0 + 0.25 * max(1, len(found.tried)) + 0.07 * longest, paint)
