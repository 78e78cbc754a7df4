"""The commands that write, check and show scenario files: their arguments and what they print; `cli` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normstab.terminal import options

if TYPE_CHECKING:
    from normstab.experiment.scenario.document import Scenario

__all__ = ["list_catalogue", "new", "outlines", "schema", "show", "validate"]


def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The scenario's name; the file is NAME.yaml.")],
    model: Annotated[str, typer.Option(help="Of `list models`, timm:NAME, torchvision:NAME or MODULE:FUNCTION.")] = "",
    dataset: Annotated[str, typer.Option("--data", help="Of `normstab list datasets`.")] = "",
    precisions: Annotated[list[str] | None, typer.Option("--precision", help="One of the grid's; repeatable.")] = None,
    norms: Annotated[list[str] | None, typer.Option("--norm", help="One of the grid's; repeatable.")] = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where to write it (NAME.yaml).")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    allow_import: options.AllowImport = False,
) -> None:
    """Write a scenario file to start from: valid, commented, with three seeds and a smoke form."""
    from normstab.errors import ScenarioError
    from normstab.experiment.scenario.authoring.starter import Starter
    from normstab.experiment.scenario.expand import expand
    from normstab.experiment.scenario.reader import scenario_of_text

    chosen: dict[str, Any] = {"model": model, "dataset": dataset}
    chosen |= {"precisions": tuple(precisions or ()), "norms": tuple(norms or ())}
    text = Starter(name, **{field: value for field, value in chosen.items() if value}).text()
    place = Path(out or f"{name}.yaml")
    if place.exists() and not force:
        raise ScenarioError(f"{place}: there is such a file; --force replaces it, --out FILE names another")
    try:
        cells = expand(scenario_of_text(text, str(place), allow_import=allow_import), hash_data=False)
    except ScenarioError as error:
        raise ScenarioError(f"{error}\nnothing was written") from error
    try:
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ScenarioError(f"{place}: cannot be written: {error.strerror}") from error
    context.obj.say(f"wrote {place}: {len(cells)} cells; next: normstab run {place} --smoke")


def validate(
    context: typer.Context,
    files: options.Files,
    smoke: options.Smoke = False,
    overrides: options.Overrides = None,
    allow_import: options.AllowImport = False,
    as_json: options.Json = False,
) -> None:
    """Check scenario files: every problem at once, with its line and a suggestion."""
    from normstab.experiment.scenario.gather import load_scenarios
    from normstab.experiment.scenario.outline import cautions_of, cell_count

    voice, scenarios = context.obj, load_scenarios(files, smoke=smoke, overrides=overrides, allow_import=allow_import)
    counts = []
    for scenario in scenarios:
        cells = cell_count(scenario)
        counts.append({"path": scenario.path, "cells": cells})
        voice.say(f"{scenario.path}: valid, {cells} cells")
        voice.note(cautions_of(scenario))
    if as_json:
        voice.give(counts)


def show(
    context: typer.Context,
    files: options.Files,
    smoke: options.Smoke = False,
    overrides: options.Overrides = None,
    allow_import: options.AllowImport = False,
    as_json: options.Json = False,
) -> None:
    """Show what scenarios ask, the cells they would run, and their cost."""
    from normstab.experiment.scenario.gather import load_scenarios

    scenarios = load_scenarios(files, smoke=smoke, overrides=overrides, allow_import=allow_import)
    context.obj.give(outlines(scenarios, as_json=as_json))


def outlines(scenarios: Sequence[Scenario], *, as_json: bool, directories: Sequence[Path] = ()) -> Any:
    """Return what the scenarios ask and would run, as text or as plain data.

    Their cost follows from an earlier run: in `directories`, one for each scenario, or where runs go by themselves.
    """
    from normstab.experiment.scenario.gather import directories_of
    from normstab.experiment.scenario.outline import outline_of
    from normstab.experiment.scenario.planning.run_costs import rates_of
    from normstab.terminal.plain import outline_text

    found = []
    for scenario, own in zip_longest(scenarios, directories):
        usual = [place for smoke in (False, True) for place in directories_of([scenario], None, smoke=smoke)]
        places = usual if own is None else [own, *usual]
        found.append(outline_of(scenario, rates_of(places)))
    return [asdict(outline) for outline in found] if as_json else "\n\n".join(map(outline_text, found))


def schema(
    context: typer.Context,
    fields: Annotated[bool, typer.Option("--fields", help="Every field as Markdown tables instead.")] = False,
) -> None:
    """Print the JSON Schema of a scenario file, or its fields as tables."""
    from normstab.experiment.scenario.authoring.field_tables import field_tables
    from normstab.experiment.scenario.authoring.schema import schema as scenario_schema

    context.obj.give(field_tables().rstrip() if fields else scenario_schema())


def list_catalogue(
    context: typer.Context,
    catalogue: Annotated[
        str, typer.Argument(help="formats, recipes, norms, models, datasets, scenarios or metrics; none: all.")
    ] = "",
    as_json: options.Json = False,
) -> None:
    """List the names that a scenario may use."""
    from normstab.experiment.scenario.listing import LISTINGS, listing
    from normstab.terminal.plain import table_text

    found = {kind: listing(kind) for kind in ([catalogue] if catalogue else LISTINGS)}
    context.obj.give(found.get(catalogue, found) if as_json else "\n\n".join(map(table_text, found.values())))
