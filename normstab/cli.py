"""The command line: arguments, printing and exit codes; every answer comes from the parts.

Human text goes to stderr, data to stdout. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normstab import cli_check, cli_frontier, cli_machine, cli_scenarios, cli_search
from normstab.errors import NormstabError
from normstab.terminal import executor_options as on
from normstab.terminal import options
from normstab.terminal.exit_codes import (
    BAD_INPUT,
    CRASHED,
    EXIT_HELP,
    FAILED,
    INTERRUPTED,
    code_of_outcome,
)
from normstab.terminal.printable import printable, silence

if TYPE_CHECKING:
    from normstab.assess.assessment import Assessment
    from normstab.experiment.execution.executor import Execution
    from normstab.experiment.execution.progress import Outcome
    from normstab.experiment.scenario.reader import Scenario
    from normstab.search.tried_remedies import Effort
    from normstab.study import Published

__all__ = ["COMMANDS", "GLOBAL_OPTIONS", "Voice", "app"]


@dataclass
class Voice:
    """How one invocation speaks: people read stderr, programs read stdout."""

    quiet: bool = False
    debug: bool = False

    def say(self, text: str) -> None:
        """Tell people, unless `--quiet`."""
        if not self.quiet:
            self.complain(text)

    def complain(self, text: str) -> None:
        """Tell people what went wrong, `--quiet` or not; nobody may be listening any more."""
        try:
            print(printable(text, sys.stderr), file=sys.stderr, flush=True)
        except OSError:
            silence(sys.stderr)

    def note(self, sentences: Sequence[str]) -> None:
        """Tell people what they may not have meant."""
        for sentence in sentences:
            self.say(f"note: {sentence}")

    def give(self, answer: Any) -> None:
        """Put a command's answer on stdout: text as it is, anything else as JSON.

        A reader that has gone, as `head` does, wants no more; an answer that finds no room is an error.
        """
        text = answer if isinstance(answer, str) else json.dumps(answer, indent=2, ensure_ascii=False)
        try:
            print(printable(text, sys.stdout), flush=True)
        except OSError as error:
            silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):
                raise NormstabError(f"stdout: cannot write: {error.strerror or error}") from error


app = typer.Typer(
    help="Will a network survive a number format, where does it break first, and what helps?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The commands, for `normstab.__main__.main`."""
GLOBAL_OPTIONS = ("--quiet", "-q", "--debug")  # options of every command


@app.callback(epilog=f"--quiet and --debug may stand anywhere on the line. {EXIT_HELP}")
def _root(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: options.Version = False,
) -> None:
    voice = context.ensure_object(Voice)
    voice.quiet, voice.debug = quiet, debug


@app.command(epilog=EXIT_HELP)
def run(
    context: typer.Context,
    files: options.Files,
    smoke: options.Smoke = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cells run at once, each in a process of its own.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each cell; a part of its result.")] = 1,
    device: options.Device = "cpu",
    overrides: options.Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every cell again, finished records or not.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and run nothing.")] = False,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where records and report go (reports/NAME).")] = "",
    force: options.Force = False,
    remedies: options.TryRemedies = "auto",
    executor: on.Executor = "local",
    address: on.Address = None,
    cpus_per_cell: on.CpusPerCell = None,
    gpus_per_cell: on.GpusPerCell = None,
    shared_out: on.SharedOut = False,
    strict: options.Strict = False,
    wide: options.Wide = False,
    allow_import: options.AllowImport = False,
    as_json: options.Json = False,
) -> None:
    """Train every cell of scenarios beside its wide reference, judge, and write the report.

    Under torchrun its processes train each cell together.
    """
    from normstab.experiment.scenario.gather import directories_of, load_scenarios
    from normstab.study import write_reports
    from normstab.terminal.torchrun_options import alone_or_first, overrides_of

    with alone_or_first(context.obj, jobs=jobs, executor=executor, device=device) as launch:
        given = overrides_of(overrides, launch)
        scenarios = load_scenarios(files, smoke=smoke, overrides=given, allow_import=allow_import)
        directories = directories_of(scenarios, out, smoke=smoke)
        effort = options.effort_of(remedies)
        if dry_run:
            context.obj.give(cli_scenarios.outlines(scenarios, as_json=as_json, directories=directories))
            return
        ray = on.RayOptions(address, cpus_per_cell, gpus_per_cell, shared_out)
        execution = on.execution_of(executor, ray, jobs=jobs, threads=threads, device=device, fresh=fresh)
        execution = replace(execution, launch=launch)
        found, outcomes, code = _run_each(context.obj, scenarios, directories, execution, force=force, effort=effort)
        published = write_reports(found, as_json=as_json, force=force)
        raise typer.Exit(max(code, _tell(context.obj, published, outcomes, strict=strict, wide=wide)))


def _run_each(
    voice: Voice,
    scenarios: Sequence[Scenario],
    directories: Sequence[Path],
    execution: Execution,
    *,
    force: bool,
    effort: Effort | None,
) -> tuple[dict[Path, Assessment], list[Outcome], int]:
    """Run scenarios in turn, up to an interrupt; return the judgements, how cells ended, and a code of failed trials.

    With `effort` the remedies of what failed are tried behind each scenario.
    """
    outcomes: list[Outcome] = []
    found: dict[Path, Assessment] = {}
    code = 0
    for scenario, directory in zip(scenarios, directories, strict=True):
        others = [] if execution.fresh else [place for place in directories if place != directory]
        outcome, assessment = _run(voice, scenario, directory, execution, force=force, others=others)
        outcomes.append(outcome)
        if assessment is None:
            break
        found[directory], code = cli_search.remedies_tried(voice, assessment, directory, effort, execution, code)
        if code == INTERRUPTED:
            break
    return found, outcomes, code


def _run(
    voice: Voice, scenario: Scenario, directory: Path, execution: Execution, *, force: bool, others: Sequence[Path]
) -> tuple[Outcome, Assessment | None]:
    """Run one scenario; return how its cells ended, and the judgement unless interrupted.

    Trainings that `others`, the directories of the command's other scenarios, have finished are not repeated.
    """
    from normstab.experiment.scenario.outline import cautions_of
    from normstab.study import run_scenario
    from normstab.terminal.live import watching

    voice.say(f"{scenario.name}: {scenario.question or 'no question stated'}")
    voice.note(cautions_of(scenario))
    with watching(voice.say, is_live=sys.stderr.isatty() and not voice.quiet) as on_event:
        outcome, assessment = run_scenario(scenario, directory, execution, on_event, force=force, others=others)
    for failure in outcome.failures:
        voice.complain(f"{failure.id}: {failure.kind}: {failure.detail if voice.debug else failure.message}")
    return outcome, assessment


def _tell(
    voice: Voice, published: Published, outcomes: Sequence[Outcome] = (), *, strict: bool, wide: bool = False
) -> int:
    """Tell the verdicts and the files written; return 3 for lost cells, 2 for unreadable records, 1 for failures.

    A run that ended otherwise has the code of its `outcomes`; cells that it refused are not lost.
    """
    from normstab.assess.expected.outcome import Outcome as Met
    from normstab.terminal.step_summary import append_summary
    from normstab.terminal.summary import summary

    judged = list(published.found.values())
    for assessment in judged:
        heading = f"{assessment.scenario.name}\n\n" if len(judged) > 1 else ""
        voice.say(f"\n{heading}{summary(assessment, width=sys.maxsize if wide else None)}")
    voice.say("\n" + "\n".join(f"report: {path}" for path in published.written))
    for reason in published.kept:
        voice.say(f"kept: {reason}")
    if published.answer:
        voice.give(published.answer)
    if summary_file := os.environ.get("GITHUB_STEP_SUMMARY"):
        append_summary(Path(summary_file), judged)
    failing = (Met.NOT_MET, Met.INCONCLUSIVE) if strict else (Met.NOT_MET,)
    has_failed = any(assessment.count(outcome) for assessment in judged for outcome in failing)
    refused = {failure.id for outcome in outcomes for failure in outcome.failures if failure.kind == "refused"}
    codes = {
        CRASHED: any(cell.id not in refused for assessment in judged for cell in assessment.missing),
        BAD_INPUT: any(assessment.problems for assessment in judged),
        FAILED: has_failed,
    }
    found = [code for code, is_so in codes.items() if is_so]
    return max([*found, *map(code_of_outcome, outcomes)], default=0)


@app.command(epilog=EXIT_HELP)
def report(
    context: typer.Context,
    directories: Annotated[list[str], typer.Argument(metavar="DIR...", help="What `normstab run` wrote.")],
    form: options.Form = "md",
    strict: options.Strict = False,
    wide: options.Wide = False,
    force: options.Force = False,
) -> None:
    """Judge the records of a run again, without training, and render them."""
    from normstab.study import publish

    published = publish([Path(directory) for directory in directories], form, force=force)
    raise typer.Exit(_tell(context.obj, published, strict=strict, wide=wide))


@app.command(epilog=EXIT_HELP)
def compare(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="DIR_A", help="A run.")],
    after: Annotated[str, typer.Argument(metavar="DIR_B", help="Another run of the same scenario.")],
    fail_on: options.Gates = None,
    as_json: options.Json = False,
) -> None:
    """Compare two runs cell by cell, and fail where a gate does."""
    from normstab.assess.compare import parse_gate
    from normstab.report.comparison import comparison_json, comparison_text
    from normstab.study import compare_directories

    gates = [parse_gate(text) for text in fail_on or ()]
    found, problems = compare_directories(Path(before), Path(after), gates)
    for problem in problems:
        context.obj.complain(f"normstab: {problem}")
    context.obj.give(comparison_json(found) if as_json else comparison_text(found, gates))
    codes = {CRASHED: found.missing, BAD_INPUT: problems, FAILED: found.failures}
    raise typer.Exit(max((code for code, is_so in codes.items() if is_so), default=0))


app.command(epilog=EXIT_HELP)(cli_check.check)
COMMANDS: tuple[Callable[..., None], ...] = (
    cli_scenarios.new,
    cli_scenarios.validate,
    cli_scenarios.show,
    cli_scenarios.schema,
    cli_machine.doctor,
    cli_machine.selftest,
    cli_search.bounds,
    cli_search.diff,
    cli_frontier.frontier,
    cli_search.promote,
)  # in files of their own
for command in COMMANDS:
    app.command()(command)
app.command(name="list")(cli_scenarios.list_catalogue)
