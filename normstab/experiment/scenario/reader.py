"""Scenario files: the only reader of YAML. Loads, applies profiles and overrides, validates, all errors at once.

What is read is a `document.Scenario`; nothing here trains, and nothing here needs torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from normstab.errors import NormstabError, ScenarioError, near
from normstab.experiment.records.files import read_json
from normstab.experiment.scenario.checking.cross_checks import check_document
from normstab.experiment.scenario.checking.expectation_coverage import vacuous_expectations, vacuous_in_grid
from normstab.experiment.scenario.checking.imported_models import unimportable_models
from normstab.experiment.scenario.checking.problems import MOST_FOUND, Problem, problems_of, raise_problems
from normstab.experiment.scenario.document import DOCUMENT, Document, Scenario
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.grid import is_large
from normstab.experiment.scenario.planning.glimpses import check_combinations
from normstab.experiment.scenario.scenario_text import ScenarioText, parse_text, read_text
from normstab.experiment.scenario.settings import apply_profile, apply_set, split_profiles

__all__ = ["Scenario", "load_scenario", "read_scenario", "scenario_of_text", "scenario_paths"]


def load_scenario(
    path: str | Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    allow_import: bool = False,
) -> Scenario:
    """Return the scenario in the file at `path` (or shipped under that name), with profile and overrides applied.

    `overrides` are `PATH=VALUE` texts; `profile=NAME` among them is applied before every other. `allow_import` lets
    a model be a `module:function`, and imports it.
    Raises ScenarioError with every problem at once, each as `file:line:column: field: what is wrong`.
    """
    return _loaded(read_text(find_scenario(path)), str(path), profile, overrides, allow_import=allow_import)


def scenario_of_text(content: str, path: str, *, allow_import: bool = False) -> Scenario:
    """Return the scenario whose file at `path` has, or is to have, this content; raise as `load_scenario` does."""
    return _loaded(parse_text(content, path), path, None, (), allow_import=allow_import)


def _loaded(
    text: ScenarioText, path: str, profile: str | None, overrides: Sequence[str], *, allow_import: bool
) -> Scenario:
    """Return the scenario of a file's text, with profile and overrides applied."""
    if not isinstance(text.document, dict):
        raise ScenarioError(
            f"{text.name}: expected a mapping that starts with 'version: 1'; see `normstab show quickstart`"
        )
    written = copy.deepcopy(text.document)
    profiles, sets = split_profiles(overrides, profile)
    for name in profiles:
        apply_profile(text, name)
    for dotted, value in sets:
        apply_set(text, dotted, value)
    parsed = _validated(text, written, allow_import=allow_import)
    if allow_import:  # never in `read_scenario`: a report that someone else made runs no code
        raise_problems(list(unimportable_models(text.document)), text)
    spelled = tuple(f"{dotted}={value}" for dotted, value in sets)
    scenario = Scenario(path, text.document, profiles, spelled, written=written, parsed=parsed)
    if is_large(scenario.document):
        check_combinations(scenario)
        raise_problems(list(vacuous_in_grid(scenario)), text)
    else:
        raise_problems(list(vacuous_expectations(scenario, expand(scenario, hash_data=False))), text)
    return scenario


def _validated(text: ScenarioText, written: Mapping[str, Any], *, allow_import: bool) -> Document:
    """Return the document's dataclass; raise with every problem of shape and of content."""
    document = text.document
    problems: list[Problem] = []
    parsed: Document | None = None
    try:
        parsed = DOCUMENT.validate_json(json.dumps(_without_recorder(document)))
    except ValidationError as error:
        problems += problems_of(error, document)
    problems += islice(check_document(document, written, allow_import=allow_import), MOST_FOUND)
    raise_problems(problems, text)
    assert parsed is not None, "a ValidationError without a problem"
    return parsed


def _without_recorder(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without `train.norm_record`, which a file writes as a selector, not as an id."""
    train = document.get("train")
    if not isinstance(train, dict):
        return document
    return {**document, "train": {name: value for name, value in train.items() if name != "norm_record"}}


def read_scenario(path: Path) -> Scenario:
    """Return the scenario that `to_json` wrote to `path`; raise ScenarioError where it does not hold any more."""
    try:
        plain = read_json(path)
    except NormstabError as error:
        raise ScenarioError(str(error)) from error
    if not isinstance(plain, dict) or plain.get("version") != 1 or not isinstance(plain.get("document"), dict):
        raise ScenarioError(f"{path}: not a scenario.json of version 1; make it anew with `normstab run`")
    text = ScenarioText(str(path), plain["document"])
    written = plain["written" if "written" in plain else "document"]
    applied = [plain.get(name, []) for name in ("profiles", "overrides")]
    told = (name for names in applied for name in (names if isinstance(names, list) else [None]))
    if not isinstance(written, dict) or not all(isinstance(name, str) for name in told):
        raise ScenarioError(f"{path}: not a scenario.json of version 1; make it anew with `normstab run`")
    parsed = _validated(text, written, allow_import=True)
    profiles, overrides = map(tuple, applied)
    return Scenario(
        str(plain.get("path", path)), plain["document"], profiles, overrides, written=written, parsed=parsed
    )


def scenario_paths() -> dict[str, Path]:
    """Return the shipped scenarios by name: those in the wheel, else those of the checkout."""
    package = Path(str(resources.files("normstab")))
    for folder in (package / "scenarios", package.parent / "scenarios"):
        if found := sorted(folder.glob("*.yaml")):
            return {path.stem: path for path in found}
    return {}


def find_scenario(path: str | Path) -> Path:
    """Return the file at `path`, or the shipped scenario of that name."""
    try:
        place = Path(path).expanduser()
    except RuntimeError as error:
        raise ScenarioError(f"{path}: {error}") from error
    shipped = scenario_paths()
    if place.exists() or str(path) not in shipped:
        if not place.exists():
            listed = ", ".join(shipped)
            raise ScenarioError(f"{path}: no such file, and no shipped scenario{near(str(path), shipped)} ({listed})")
        return place
    return shipped[str(path)]
