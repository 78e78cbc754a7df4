"""The commands that search: their arguments and what they print; `cli` lists them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from normstab.errors import NormstabError
from normstab.terminal import options
from normstab.terminal.exit_codes import BAD_INPUT, FAILED, INTERRUPTED

if TYPE_CHECKING:
    from normstab.assess.assessment import Assessment
    from normstab.experiment.execution.executor import Execution
    from normstab.search.divergence import Divergence
    from normstab.search.promotion import Promotion, Search
    from normstab.search.tried_remedies import Effort
    from normstab.testing.subject import Subject

__all__ = ["bounds", "diff", "promote", "remedies_tried"]

By = Literal["site", "operation", "module", "class"]
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def promote(
    context: typer.Context,
    scenario: Annotated[str, typer.Argument(metavar="[FILE]", help="A scenario file, or a shipped one's name.")] = "",
    cell: Annotated[str, typer.Option(metavar="VALUES", help="Values of one point of the grid: l2,fp16,256.")] = "",
    check: Annotated[str, typer.Option(metavar="MODULE:FUNCTION", help="A model of your own, without training.")] = "",
    inputs: options.Inputs = None,
    precision: Annotated[str, typer.Option(help="Of --check: such as fp16.")] = "fp16",
    norm: Annotated[str | None, typer.Option(help="Swap the norm layers of --check to this one first.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --check: the factory, the inputs, stochastic rounding.")] = 0,
    by: Annotated[By, typer.Option(help="What is kept wide, one by one.")] = "module",
    wide: Annotated[str, typer.Option(metavar="FORMAT", help="The format of what is kept wide.")] = "fp32",
    allow: Annotated[list[str] | None, typer.Option(metavar="VERDICT", help="Enough beside STABLE.")] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Begin no training after this: 30m, 2h.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Seeds trained at once.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each training; a part of its result.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="The scenario's smoke profile.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field.")] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where records and report go (reports/NAME-promote).")] = "",
    allow_import: Annotated[bool, typer.Option("--allow-import", help="Allow module:function names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")] = False,
) -> None:
    """Find the minimal set that has to stay wide for a failing cell to train, or a model to survive.

    Exit code 1 where none was found, or where the fresh seeds do not confirm the one that was.
    """
    from normstab.experiment.execution.executor import Execution
    from normstab.report.promotion_report import promotion_json, promotion_text, write_promotion
    from normstab.search.promotion import Search

    voice: Any = context.obj
    if bool(scenario) == bool(check):
        raise NormstabError("promote takes either a scenario or --check MODULE:FUNCTION")
    allowed, budget_s = options.verdicts_of(allow), seconds(budget)
    execution = Execution(jobs=jobs, threads=threads)
    search = Search(by=by, wide=wide, allowed=allowed, budget_s=budget_s, execution=execution)
    if check:
        found = _promote_model(check, inputs or (), precision, norm, seed, search)
        directory = Path(out) if out else None
    else:
        source = _Source(scenario, cell, smoke=smoke, overrides=overrides or (), allow_import=allow_import)
        found, directory = _promote_cell(voice, source, out, search)
    if directory is not None:
        voice.say(f"report: {write_promotion(found, directory)}")
    voice.give(promotion_json(found) if as_json else promotion_text(found))
    raise typer.Exit(0 if found.members is not None and _is_enough(found.verdict, search) else FAILED)


@dataclass(frozen=True)
class _Source:
    """The cell of a scenario that a promotion is asked for."""

    scenario: str
    cell: str
    smoke: bool
    overrides: Sequence[str]
    allow_import: bool


def _promote_cell(voice: Any, source: _Source, out: str, search: Search) -> tuple[Promotion, Path]:
    """Promote a cell by trainings; return the answer and the directory of its records."""
    from normstab.experiment.scenario.gather import load_scenarios
    from normstab.search.promotion import promote as find
    from normstab.terminal.live import watching

    (chosen,) = load_scenarios(
        [source.scenario], smoke=source.smoke, overrides=source.overrides, allow_import=source.allow_import
    )
    directory = Path(out or f"reports/{chosen.name}-promote")
    with watching(voice.say, is_live=sys.stderr.isatty() and not voice.quiet) as on_event:
        return find(chosen, source.cell, out=directory, search=search, on_event=on_event), directory


def _promote_model(
    factory: str, inputs: Sequence[str], precision: str, norm: str | None, seed: int, search: Search
) -> Promotion:
    """Promote a model by passes of `check`."""
    from normstab.experiment.network.users_code import load_function
    from normstab.testing.check_input import build, parse_inputs

    specs = parse_inputs(inputs)
    built = build(load_function(factory), seed)
    from dataclasses import replace

    from normstab.testing.check_promotion import promote_check

    return promote_check(
        built, inputs=specs, precision=precision, norm=norm, seed=seed, search=replace(search, fresh_seeds=1)
    )


def _is_enough(verdict: Any, search: Search) -> bool:
    """Return whether the verdict of the answer is one that was asked for."""
    return verdict.name == "STABLE" or verdict in search.allowed


def seconds(text: str) -> float | None:
    """Return a time such as 90, 90s, 30m or 2h in seconds; None for an empty text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not text:
        return None
    if match is None:
        raise NormstabError(f"--budget {text!r}: expected a number and s, m or h, such as 30m")
    return float(match[1]) * UNITS[match[2]]


Factory = Annotated[str, typer.Argument(metavar="[MODULE:FUNCTION]", help="Makes a module (or it, batch, loss).")]


def bounds(
    context: typer.Context,
    factory: Factory = "",
    inputs: options.Inputs = None,
    precision: Annotated[
        str, typer.Option(help="Such as fp16, bf16/stochastic, 'fp16/nearest/fp16:pairwise'.")
    ] = "fp16",
    norm: Annotated[str | None, typer.Option(help="Swap the norm layers to this one first.")] = None,
    failure: Annotated[float, typer.Option(help="Probability with which one probable bound may fail.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of the factory, the inputs and stochastic rounding.")] = 0,
    growth: Annotated[
        bool, typer.Option("--growth", help="Show the growth of errors over n, fitted, instead.")
    ] = False,
    out: Annotated[str, typer.Option(metavar="DIR", help="Write a report with a plot there.")] = "",
    as_json: options.Json = False,
) -> None:
    """Show the a-priori error bound of sums, products, norms beside the error. Exit code 1 where one is exceeded."""
    if growth == bool(factory):
        raise NormstabError("bounds takes either MODULE:FUNCTION or --growth")
    if growth:
        _give_growth(context.obj, seed, as_json=as_json)
        return
    subject = _subject(factory, inputs or (), seed, norm=norm)
    from normstab.report.bounds_report import bounds_json, bounds_text, write_bounds
    from normstab.search.measured_bounds import bounds as find

    found = find(
        subject.module, subject.args, subject.kwargs, precision=precision, loss=subject.loss, failure=failure, seed=seed
    )
    if out:
        context.obj.say(f"report: {write_bounds(found, Path(out))}")
    context.obj.give(bounds_json(found) if as_json else bounds_text(found))
    raise typer.Exit(FAILED if found.violations else 0)


def _give_growth(voice: Any, seed: int, *, as_json: bool) -> None:
    """Print how errors grow with the number of addends."""
    from dataclasses import asdict

    from normstab.report.bounds_report import growth_text
    from normstab.search.error_growth import error_growth

    found = error_growth(seed=seed)
    voice.give([asdict(growth) for growth in found] if as_json else growth_text(found))


def _subject(factory: str, inputs: Sequence[str], seed: int, *, norm: str | None = None) -> Subject:
    """Return what a factory makes, on its input, having run once as torch does."""
    from normstab.experiment.network.users_code import load_function
    from normstab.testing.check_input import build, parse_inputs

    specs = parse_inputs(inputs)
    built = build(load_function(factory), seed)
    from normstab.norms.replace import replace_norms_
    from normstab.testing.check_run import run_plainly
    from normstab.testing.subject import subject_of

    subject = subject_of(built, specs, seed)
    if norm is not None:
        replace_norms_(subject.module, norm)
    run_plainly(subject, seed)
    return subject


def diff(
    context: typer.Context,
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_A RUN_B]", help="What `normstab run` wrote.")
    ] = None,
    check: Annotated[str, typer.Option(metavar="MODULE:FUNCTION", help="Makes a module (or it, batch, loss).")] = "",
    inputs: options.Inputs = None,
    precision: Annotated[str, typer.Option(help="Of the one run of --check, A.")] = "fp16",
    against: Annotated[str, typer.Option(help="Of the other, B: fp32; with --compiled as A.")] = "",
    compiled: Annotated[
        str | None,
        typer.Option(metavar="none|core|inductor", help="Run B under torch.compile, with these decompositions."),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Swap the norm layers of --check to this one first.")] = None,
    cell: Annotated[str, typer.Option(metavar="VALUES", help="Cells of the runs with these values: l2,fp16.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the factory, the inputs and stochastic rounding.")] = 0,
    out: Annotated[str, typer.Option(metavar="DIR", help="Write diff.md and diff.html there.")] = "",
    as_json: options.Json = False,
) -> None:
    """Show the first operation where two runs part, site by site. Exit code 1 where they do."""
    runs = runs or []
    if len(runs) != (0 if check else 2):
        raise NormstabError("diff takes either two runs, RUN_A RUN_B, or --check MODULE:FUNCTION")
    if runs and compiled is not None:
        raise NormstabError(
            "diff --compiled is about a model, --check MODULE:FUNCTION: two runs are compared as they were"
        )
    from normstab.report import divergence_report as rendered
    from normstab.search import divergence as search

    if check:
        subject = _subject(check, inputs or (), seed, norm=norm)
        b = against or ("fp32" if compiled is None else precision)
        found = _divergence(subject, precision, b, seed, compiled)
        parted = [found] if found.first is not None else []
        answer = rendered.divergence_json(found) if as_json else rendered.divergence_text(found)
    else:
        cells = search.diff_runs(runs[0], runs[1], cell)
        parted = [each.divergence for each in cells if each.divergence.first is not None]
        found = parted[0] if parted else cells[0].divergence
        answer = rendered.runs_json(cells) if as_json else rendered.runs_text(cells)
    if out:
        context.obj.say(f"report: {rendered.write_divergence(found, Path(out))}")
    context.obj.give(answer)
    raise typer.Exit(FAILED if parted else 0)


def _divergence(subject: Subject, a: str, b: str, seed: int, compiled: str | None) -> Divergence:
    """Return where a model in precision `a` parts from itself in `b`."""
    from normstab.search.divergence import diff as find

    args, kwargs, loss = subject.args, subject.kwargs, subject.loss
    return find(subject.module, args, kwargs, precision=a, against=b, loss=loss, seed=seed, compiled=compiled)


def remedies_tried(
    voice: Any, found: Assessment, directory: Path, effort: Effort | None, execution: Execution, code: int
) -> tuple[Assessment, int]:
    """Try the remedies of what failed, unless `effort` is None; return the judgement with what is known of them.

    The second is the exit code of what went wrong in it, else `code`: the run itself is finished and is told.
    """
    from normstab.search.tried_remedies import plan_trials, try_remedies
    from normstab.study import with_remedies_tried
    from normstab.terminal.live import watching

    if effort is None:
        return found, code
    if plan_trials(found, effort)[0]:
        voice.say("trying remedies of what failed, in trainings of their own (--try-remedies no leaves them out)")
    try:
        with watching(voice.say, is_live=sys.stderr.isatty() and not voice.quiet) as on_event:
            try_remedies(found, directory, effort, execution, on_event)
    except KeyboardInterrupt:
        return with_remedies_tried(found, directory), INTERRUPTED
    except NormstabError as problem:
        voice.complain(f"remedies were not tried: {problem}")
        return found, BAD_INPUT
    return with_remedies_tried(found, directory), code
