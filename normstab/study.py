"""From a scenario, or the directory of a run, to judgements and files: puts the parts together, does no part itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from normstab.assess.assessment import Assessment, assess, matched
from normstab.assess.causes.tried import read_tried, with_tried
from normstab.assess.compare import Comparison, Gate, compare_judged
from normstab.assess.judgement import judge_runs
from normstab.assess.run_reader import read_runs
from normstab.assess.runs import Run
from normstab.errors import NormstabError, RecordError, ScenarioError, StrayRecord, lookup
from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.execution.progress import Event, Outcome
from normstab.experiment.records.files import json_text, remove_unfinished, write_atomically
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.gather import SMOKE_SUFFIX
from normstab.experiment.scenario.reader import read_scenario
from normstab.experiment.scenario.spec import Cell

__all__ = [
    "FORMS",
    "Published",
    "assess_directory",
    "compare_directories",
    "keep_larger_report",
    "keep_scenario",
    "publish",
    "run_scenario",
    "write_pages",
    "write_reports",
]

SCENARIO_FILE = "scenario.json"
"""The resolved scenario beside its records: all that judging them again needs."""

FORMS = {"md": "report.md and plots", "html": "report.html", "json": "to stdout", "junit": "to stdout"}
"""The forms of a report, and where each goes."""

UNFINISHED_S = 60.0
"""A page has no lock: what another process has begun to write there is not older than this."""


@dataclass(frozen=True)
class Published:
    """What was judged, by directory, the files written, the text for stdout, and why which page was not written."""

    found: Mapping[Path, Assessment]
    written: tuple[Path, ...] = ()
    answer: str = ""
    kept: tuple[str, ...] = ()


def keep_scenario(scenario: Scenario, directory: Path) -> None:
    """Write the scenario beside its records; raise RecordError where the directory cannot be written."""
    write_atomically(directory / SCENARIO_FILE, json_text(scenario.to_json()))


def keep_larger_report(directory: Path, cells: int, *, force: bool) -> None:
    """Raise RecordError where the report in `directory` speaks of more than `cells` finished cells, unless `force`."""
    from normstab.report.markdown import cells_listed

    listed = cells_listed(directory / "report.md")
    if listed > cells and not force:
        raise RecordError(
            f"{directory / 'report.md'}: speaks of {listed} finished cells, and this one would of {cells}; "
            "--force replaces it, --out or `--format html` writes elsewhere"
        )


def run_scenario(
    scenario: Scenario,
    directory: Path,
    execution: Execution,
    on_event: Callable[[Event], None],
    *,
    force: bool = False,
    others: Sequence[Path] = (),
) -> tuple[Outcome, Assessment | None]:
    """Run a scenario's cells, and return how they ended and the judgement of the records (None if interrupted).

    Trainings that lie finished in the directories `others` are copied from there.
    """
    cells = expand(scenario)
    keep_larger_report(directory, len(cells), force=force)

    def prepare() -> None:
        keep_scenario(scenario, directory)

    outcome = run_cells(cells, directory, execution=execution, on_event=on_event, prepare=prepare, others=others)
    return outcome, None if outcome.is_interrupted else assess_directory(directory, scenario, cells=cells)


def assess_directory(directory: Path, scenario: Scenario | None = None, *, cells: Sequence[Cell] = ()) -> Assessment:
    """Return the judgement of the records in `directory`, against the scenario kept there or the one given.

    Records of other cells than the scenario's are left out. Where the data are not on this machine, or the records
    are of another version of the numerics, the cells' ids are not theirs: they are found by their coordinates.
    Raises ScenarioError where no scenario is kept there.
    """
    if scenario is None:
        if not (directory / SCENARIO_FILE).exists():
            raise ScenarioError(f"{directory}: no {SCENARIO_FILE} in it; give the directory that `normstab run` wrote")
        scenario = read_scenario(directory / SCENARIO_FILE)
    runs, problems = read_runs(directory)
    found = assess(runs, scenario, expected=cells or _cells(scenario), problems=problems)
    return with_remedies_tried(found, directory)


def with_remedies_tried(found: Assessment, directory: Path) -> Assessment:
    """Return the judgement with what became of the remedies that were tried beside its records."""
    try:
        tried = read_tried(directory)
    except RecordError as problem:
        return replace(found, problems=(*found.problems, str(problem)))
    groups = [
        replace(group, remedies=with_tried(group.remedies, group.worst.id, tried)) if group.remedies else group
        for group in found.groups
    ]
    return replace(found, groups=tuple(groups))


def _cells(scenario: Scenario) -> Sequence[Cell]:
    """Return the scenario's cells; without the ids of a run where their data are not here."""
    try:
        return expand(scenario)
    except NormstabError:
        return expand(scenario, hash_data=False)


def publish(directories: Sequence[Path], form: str, *, force: bool = False) -> Published:
    """Judge the records in each directory again, and write their reports and joint pages, or return them as text.

    `form` is one of FORMS. Raises NormstabError for another form, and where a directory holds no run.
    """
    from normstab.report.documents import to_json, to_junit
    from normstab.report.html import write_html

    lookup(FORMS, form, what="report format")
    found = {directory: assess_directory(directory) for directory in directories}
    if form == "md":
        return write_reports(found, force=force)
    if form == "html":
        return Published(found, tuple(write_html(assessment, directory) for directory, assessment in found.items()))
    return Published(found, answer=(to_json if form == "json" else to_junit)(*found.values()))


def write_reports(found: Mapping[Path, Assessment], *, as_json: bool = False, force: bool = False) -> Published:
    """Write the Markdown report of each judged directory and their joint pages; `as_json` adds the JSON answer.

    Raises RecordError, and writes nothing, where a report of more finished cells would be lost, unless `force`.
    """
    from normstab.report.documents import to_json
    from normstab.report.markdown import write_report

    for directory, assessment in found.items():
        finished = sum(len(group.cells) for group in assessment.groups)
        keep_larger_report(directory, finished, force=force)
    written = [write_report(assessment, directory) for directory, assessment in found.items()]
    answer = to_json(*found.values()) if as_json and found else ""
    pages, kept = write_pages(found, force=force)
    return Published(found, (*written, *pages), answer, tuple(kept))


def write_pages(found: Mapping[Path, Assessment], *, force: bool = False) -> tuple[list[Path], list[str]]:
    """Write every joint page that one of the scenarios asks for; return their paths, and why which ones were kept.

    A page stands beside the directories, and shows what is in them: also scenarios that were run earlier. One with
    more claims evaluated than the records here allow stays, unless `force`.
    """
    from normstab.report.page import reason_to_keep, write_page

    written: list[Path] = []
    kept: dict[Path, str] = {}
    for directory, assessment in found.items():
        page = assessment.scenario.page
        target = directory.parent / (page or "")
        if page is None or directory.name.endswith(SMOKE_SUFFIX) or target / "report.md" in {*written, *kept}:
            continue
        if target in found or (target / SCENARIO_FILE).exists():
            raise ScenarioError(
                f"{assessment.scenario.path}: page: {target} holds the run of a scenario, whose report the page would "
                "overwrite; choose another page, or another --out"
            )
        sharing = {place: other for place, other in found.items() if other.scenario.page == page}
        for path in sorted(directory.parent.glob(f"*/{SCENARIO_FILE}")):
            is_smoke = path.parent.name.endswith(SMOKE_SUFFIX)
            if path.parent not in sharing and not is_smoke and _asks_for(path, page):
                sharing[path.parent] = assess_directory(path.parent)
        reason = reason_to_keep(list(sharing.values()), target)
        if reason and not force:
            kept[target / "report.md"] = reason
            continue
        written.append(write_page(page, sharing, target))
        remove_unfinished(target, least_age_s=UNFINISHED_S)
    return written, list(kept.values())


def _asks_for(path: Path, page: str) -> bool:
    """Return whether the scenario kept at `path` is readable and asks for this page."""
    try:
        return read_scenario(path).page == page
    except NormstabError:
        return False


def compare_directories(before: Path, after: Path, gates: Sequence[Gate]) -> tuple[Comparison, list[str]]:
    """Return the comparison of two runs, and the problems of records that could not be read."""
    sides, problems, missing = [], [], []
    for name, directory in (("A", before), ("B", after)):
        runs, unread = read_runs(directory)
        if not runs:
            why = f": {unread[0]}" if unread else "; give the DIR of a `normstab run --out DIR`"
            raise RecordError(f"{directory}: no readable record in it{why}")
        sides.append(judge_runs(runs).groups)
        problems += [str(problem) for problem in unread if not isinstance(problem, StrayRecord)]
        missing += [f"{cell.id} in {name}" for cell in _missing(directory, runs)]
    return compare_judged(sides[0], sides[1], gates, missing=missing), problems


def _missing(directory: Path, runs: Sequence[Run]) -> Sequence[Cell]:
    """Return the cells of the scenario kept in `directory` that have no record; none where no scenario is kept."""
    path = directory / SCENARIO_FILE
    if not path.exists():
        return ()
    return matched(runs, _cells(read_scenario(path)))[1]
