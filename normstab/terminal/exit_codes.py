"""The exit codes of the command line, and the one table that gives a verdict its code, for check, run and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normstab.experiment.execution.progress import Outcome

__all__ = [
    "BAD_INPUT",
    "CRASHED",
    "EXIT_HELP",
    "FAILED",
    "INTERNAL",
    "INTERRUPTED",
    "code_of_outcome",
    "code_of_verdict",
]

FAILED, BAD_INPUT, CRASHED, INTERNAL, INTERRUPTED = 1, 2, 3, 4, 130
"""Exit codes; the gravest is the greatest."""

VERDICT_CODES = {
    "STABLE": 0,
    "INCONCLUSIVE": 0,
    "DEGRADED": FAILED,
    "DIVERGED": FAILED,
    "COLLAPSED": FAILED,
    "NONFINITE": FAILED,
}

EXIT_HELP = (
    "Exit codes: 0 STABLE or INCONCLUSIVE (check), no failed expectation (run, report) or gate (compare); "
    "1 DEGRADED, DIVERGED, COLLAPSED or NONFINITE (check), a failed expectation or gate, INCONCLUSIVE with --strict; "
    "2 bad input; 3 a cell crashed or is missing; 4 internal error; 130 Ctrl-C."
)
"""What each code means, shown in the help of the commands that judge."""


def code_of_outcome(outcome: Outcome) -> int:
    """Return the exit code that the cells of a run ask for."""
    codes = [BAD_INPUT if failure.kind == "refused" else CRASHED for failure in outcome.failures]
    return max([INTERRUPTED if outcome.is_interrupted else 0, *codes])


def code_of_verdict(verdict: str, *, allow: str | None = None, strict: bool = False) -> int:
    """Return the exit code of a verdict; `allow` names one that is permitted, `strict` fails INCONCLUSIVE."""
    if verdict == "INCONCLUSIVE" and strict:
        return FAILED
    return 0 if verdict == allow else VERDICT_CODES[verdict]
