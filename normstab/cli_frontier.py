"""The command that maps the smallest formats: its arguments and what it prints; `cli` lists it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from normstab.terminal import options
from normstab.terminal.exit_codes import FAILED

__all__ = ["frontier"]


def frontier(
    context: typer.Context,
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of a shipped one.")],
    cell: Annotated[str, typer.Option(metavar="VALUES", help="Values of one point of the grid: l1,fp16,1.")] = "",
    exponents: Annotated[str, typer.Option(metavar="LOW..HIGH", help="Exponent bits.")] = "2..8",
    significands: Annotated[str, typer.Option(metavar="LOW..HIGH", help="Trailing significand bits.")] = "1..10",
    accumulator: Annotated[
        bool, typer.Option("--accumulator", help="The format of accumulators, not results.")
    ] = False,
    allow: Annotated[list[str] | None, typer.Option(metavar="VERDICT", help="Enough beside STABLE.")] = None,
    fresh_seeds: Annotated[int | None, typer.Option(min=0, help="Seeds on which corners are trained again.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds trained at once.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each training; a part of its result.")] = 1,
    smoke: options.Smoke = False,
    overrides: options.Overrides = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where records and report go (reports/NAME-frontier).")] = "",
    allow_import: options.AllowImport = False,
    as_json: options.Json = False,
) -> None:
    """Map the smallest formats eXmY in which a cell trains. Exit code 1 where none does, or none is confirmed."""
    from normstab.experiment.execution.executor import Execution
    from normstab.experiment.scenario.gather import load_scenarios
    from normstab.report.frontier_report import frontier_json, frontier_text, write_frontier
    from normstab.search.format_map import Grid
    from normstab.search.format_map import frontier as find
    from normstab.terminal.live import watching

    voice: Any = context.obj
    grid = Grid(
        exponents=numbers("--exponents", exponents, low=2, high=8),
        significands=numbers("--significands", significands, low=1, high=23),
        is_accumulator=accumulator,
        allowed=options.verdicts_of(allow),
        fresh_seeds=fresh_seeds,
        execution=Execution(jobs=jobs, threads=threads),
    )
    (chosen,) = load_scenarios([scenario], smoke=smoke, overrides=overrides, allow_import=allow_import)
    directory = Path(out or f"reports/{chosen.name}-frontier")
    with watching(voice.say, is_live=sys.stderr.isatty() and not voice.quiet) as on_event:
        found = find(chosen, cell, out=directory, grid=grid, on_event=on_event)
    voice.say(f"report: {write_frontier(found, directory)}")
    voice.give(frontier_json(found) if as_json else frontier_text(found))
    raise typer.Exit(0 if found.confirmed else FAILED)


def numbers(option: str, text: str, *, low: int, high: int) -> tuple[int, ...]:
    """Return the numbers that LOW..HIGH names, or one number; raise NormstabError for what is not in low .. high."""
    from normstab.errors import NormstabError

    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not low <= first <= last <= high:
        raise NormstabError(f"{option} {text!r}: expected LOW..HIGH with {low} <= LOW <= HIGH <= {high}")
    return tuple(range(first, last + 1))
