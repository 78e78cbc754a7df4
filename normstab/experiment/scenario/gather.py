"""Scenarios as a command line names them: files, directories, names of shipped ones; and where their runs go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from normstab.errors import ScenarioError
from normstab.experiment.scenario.reader import Scenario, load_scenario

__all__ = ["SMOKE_SUFFIX", "directories_of", "load_scenarios"]


SMOKE_SUFFIX = "-smoke"
"""What the directory of a smoke run is called after the scenario's name, so that it never replaces a whole run."""


def load_scenarios(
    files: Sequence[str], *, smoke: bool = False, overrides: Sequence[str] | None = None, allow_import: bool = False
) -> list[Scenario]:
    """Return the scenarios that `files` name, each once; a directory stands for the *.yaml in it.

    `smoke` applies the profile of that name. Raises one ScenarioError with the problems of all files.
    """
    profile = "smoke" if smoke else None
    scenarios, problems = [], []
    for path in _paths(files):
        try:
            scenarios.append(load_scenario(path, profile=profile, overrides=overrides or (), allow_import=allow_import))
        except ScenarioError as error:
            problems.append(str(error))
    names = {scenario.name: scenario.path for scenario in scenarios}
    problems += [
        f"{scenario.path}: page: {scenario.page!r} is the name of {names[scenario.page]}, whose report the page would "
        "overwrite; choose another name for the page"
        for scenario in scenarios
        if scenario.page in names
    ]
    if problems:
        raise ScenarioError("\n".join(problems))
    return scenarios


def _paths(files: Sequence[str]) -> list[str]:
    """Return the paths and names given, a directory replaced by the scenarios in it."""
    paths: list[str] = []
    for given in files:
        place = Path(given)
        found = [str(file) for file in sorted(place.glob("*.yaml"))] if place.is_dir() else [given]
        if not found:
            raise ScenarioError(f"{given}: no *.yaml in it; `normstab list scenarios` names the shipped ones")
        paths += found
    return list(dict.fromkeys(paths))


def directories_of(scenarios: Sequence[Scenario], out: str | None, *, smoke: bool = False) -> list[Path]:
    """Return where each scenario's run goes: reports/NAME; `out` for a single one, else `out`/NAME.

    Without `out` a smoke run goes to reports/NAME-smoke.

    Raises ScenarioError when two of them have one name and so one directory.
    """
    if out and len(scenarios) == 1:
        return [Path(out)]
    suffix = SMOKE_SUFFIX if smoke and not out else ""
    directories = [Path(out or "reports") / f"{scenario.name}{suffix}" for scenario in scenarios]
    for scenario, directory in zip(scenarios, directories, strict=True):
        if directories.count(directory) > 1:
            raise ScenarioError(
                f"{scenario.path}: another of these scenarios is named {scenario.name!r} too; run it alone"
            )
    return directories
