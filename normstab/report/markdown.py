"""The Markdown report: `report.md` and its plots, from an assessment; the verdict first, details folded.

Pure: the same assessment gives the same text and the same plots; `write_report` alone touches the disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from normstab.assess.assessment import Assessment
from normstab.assess.judgement import GroupJudgement
from normstab.assess.points import point_words
from normstab.assess.verdicts import Verdict
from normstab.experiment.records.files import read_plain_file, write_atomically
from normstab.report import appendix, sections
from normstab.report.escaping import inert, one_line
from normstab.report.glossary import as_list
from normstab.report.pictures.exponents import exponent_plot
from normstab.report.pictures.plots import MOST_PANELS, accuracy_plots, gravest_of, loss_plots, panels_of
from normstab.report.pictures.site_maps import site_maps
from normstab.report.spikes_table import spikes_table
from normstab.report.words import command_for, number, promote_command

__all__ = ["Rendered", "cells_listed", "fill_template", "quoted", "render_report", "write_report"]

MOST_FAILURES, MOST_EXPONENTS, MOST_MORE, MOST_COMMANDS, MOST_HEADROOMS = 8, 4, 60, 60, 6


@dataclass(frozen=True)
class Rendered:
    """A report: its text, and the text of each file beside it, by path."""

    text: str
    files: Mapping[str, str] = field(default_factory=dict)


def fill_template(name: str, values: Mapping[str, Any]) -> str:
    """Return a template of this package filled in, values escaped in HTML; blank lines beyond one are dropped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=name.endswith(".html.j2"),
        finalize=_as_it_is if name.endswith(".html.j2") else _inert,
    )
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(name).render(values)).strip() + "\n"


def _as_it_is(value: Any) -> Any:
    """Return what a template of HTML prints, which escapes by itself."""
    return value


def _inert(value: Any) -> Any:
    """Return what a template of Markdown prints: texts without HTML, those marked `safe` as they are."""
    return inert(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render_report(found: Assessment) -> Rendered:
    """Return the report of an assessment, with its plots."""
    files: dict[str, str] = {}
    panels = panels_of(found.judged)
    drawn = gravest_of(panels, MOST_PANELS)
    plots = {
        "loss": _numbered(files, "loss", loss_plots(drawn)),
        "accuracy": _numbered(files, "accuracy", accuracy_plots(drawn)),
        "sites": {name: _filed(files, f"sites-{name}", svg) for name, svg in site_maps(found.judged).items()},
    }
    failing = sorted(
        (group for group in found.judged if group.verdict.fails),
        key=lambda group: -group.verdict.value,
    )
    values = {
        "scenario": found.scenario,
        "question": quoted([part for part in (found.scenario.question, _source(found)) if part]),
        "headline": f"> [!{sections.alert(found)}]\n{quoted(sections.headline(found))}",
        "problems": [one_line(problem) for problem in found.problems],
        "warnings": [one_line(warning) for warning in found.warnings],
        "missing": found.missing,
        "words": point_words,
        "expectations": sections.expectations_table(found) if found.expectations else "",
        "matrices": sections.matrices(found) if found.groups else [],
        "tokens": sections.tokens_table(found.groups),
        "seeds": _seeds(found),
        "failures": [_failure(found, group, number, files) for number, group in enumerate(failing[:MOST_FAILURES], 1)],
        "more_failures": [_one_line(group) for group in failing[MOST_FAILURES : MOST_FAILURES + MOST_MORE]],
        "undecided": sections.undecided_table(found) if Verdict.INCONCLUSIVE in found.tally() else "",
        "plots": plots,
        "panels_left": max(0, len(panels) - MOST_PANELS),
        "glossary": as_list(),
        **_details(found),
    }
    return Rendered(fill_template("report.md.j2", values), files)


def write_report(found: Assessment, directory: Path) -> Path:
    """Write `report.md` and `plots/` into `directory`, without the plots of an earlier report; return its path."""
    rendered = render_report(found)
    for stale in set(directory.glob("plots/*.svg")) - {directory / path for path in rendered.files}:
        stale.unlink()
    for path, text in rendered.files.items():
        write_atomically(directory / path, text)
    write_atomically(directory / "report.md", rendered.text)
    return directory / "report.md"


def cells_listed(path: Path) -> int:
    """Return how many finished cells the report at `path` speaks of; 0 where there is no report that reads."""
    try:
        text = read_plain_file(path).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return 0
    table = text.partition("<summary>Every cell</summary>")[2].partition("</details>")[0]
    more = re.search(r"^(\d+) more cells are in", table, re.MULTILINE)
    rows = sum(line.startswith("|") for line in table.splitlines())
    return max(0, rows - 2) + (int(more[1]) if more else 0)


def quoted(paragraphs: Sequence[str]) -> str:
    """Return paragraphs as one Markdown quotation."""
    return "\n>\n".join("> " + "\n> ".join(paragraph.strip().splitlines()) for paragraph in paragraphs)


def _source(found: Assessment) -> str:
    """Return where the question comes from."""
    return f"Source: {found.scenario.source}" if found.scenario.source else ""


def _filed(files: dict[str, str], name: str, svg: str | None) -> str:
    """Keep a plot under `plots/` and return its path, empty where there is no plot."""
    if svg is None:
        return ""
    files[f"plots/{name}.svg"] = svg
    return f"plots/{name}.svg"


def _numbered(files: dict[str, str], name: str, pictures: Sequence[str]) -> list[str]:
    """Keep pictures as NAME.svg, or NAME-1.svg, NAME-2.svg, ..., and return their paths."""
    names = [name] if len(pictures) == 1 else [f"{name}-{number}" for number in range(1, len(pictures) + 1)]
    return [_filed(files, each, svg) for each, svg in zip(names, pictures, strict=True)]


def _seeds(found: Assessment) -> str:
    """Return how many seeds the grid points have."""
    counts = sorted({len(group.cells) for group in found.groups})
    return "1 seed" if counts == [1] else f"{' or '.join(map(str, counts))} seeds"


def _failure(found: Assessment, group: GroupJudgement, place: int, files: dict[str, str]) -> dict[str, Any]:
    """Return what the template shows of one grid point that is not stable."""
    cell = group.worst
    return {
        "mark": group.verdict.mark,
        "title": one_line(point_words(group.coordinates)),
        "verdict": group.verdict,
        "sentence": cell.sentence[0].upper() + cell.sentence[1:],
        "facts": [*_facts(group), *_promotion(found, group)],
        "remedies": sections.remedies_table(group) if group.remedies else "",
        "command": command_for(found.scenario, cell.coordinates).replace(" --set ", " \\\n  --set "),
        "plot": _filed(files, f"exponents-{place}", exponent_plot(group) if place <= MOST_EXPONENTS else None),
        "sites": sections.sites_table(cell.run) if cell.run.total.overflow or cell.run.total.underflow else "",
    }


def _promotion(found: Assessment, group: GroupJudgement) -> list[str]:
    """Return how to find what has to stay wide; nothing where nothing was emulated."""
    command = promote_command(found.scenario, group.coordinates)
    return [f"the least that has to stay wide, by trainings: `{command}`"] if group.worst.run.is_emulated else []


def _facts(group: GroupJudgement) -> list[str]:
    """Return the numbers behind a verdict: seeds, distance in seed noise, gradients, updates, headroom."""
    cell, metrics = group.worst, group.worst.metrics
    verdicts = [str(found.verdict) for found in group.cells]
    facts = [f"seeds: {', '.join(f'{verdicts.count(v)} {v}' for v in dict.fromkeys(verdicts))}"]
    if metrics["accuracy_gap_sd"] is not None:
        far = abs(metrics["accuracy_gap_sd"]) > 100
        deviations = "over 100" if far else number(metrics["accuracy_gap_sd"])
        facts.append(f"accuracy below the reference: {deviations} standard deviations of its seeds")
    if metrics["first_divergence"] is not None:
        facts.append(
            f"left the reference's loss band in step {metrics['first_divergence']:.0f} of {cell.run.record.steps}"
        )
    if metrics["gradient_cosine"] is not None:
        cosine, distance = number(metrics["gradient_cosine"]), number(metrics["weight_distance"])
        facts.append(f"cosine of its gradient with the reference's: {cosine} at worst (1 is the same direction)")
        facts.append(f"distance of its weights from the reference's: {distance} of their norm")
    if metrics["collapsed_channels"]:
        facts.append(f"{100 * metrics['collapsed_channels']:.0f} % of the channels are normalised by inf, NaN or zero")
    if metrics["zero_updates"] is not None and metrics["zero_updates"] >= 1e-3:
        facts.append(f"{100 * metrics['zero_updates']:.1f} % of the weight updates changed nothing")
    facts += sections.precision_lost(cell.run)
    if metrics["headroom_up"] is not None:
        exceeded = ", exceeded" if metrics["headroom_up"] < 0 else ""
        facts.append(f"headroom of the tightest norm layer: {metrics['headroom_up']:+.1f} binades{exceeded}")
    return facts


def _one_line(group: GroupJudgement) -> str:
    """Return a grid point in one line."""
    return f"{group.verdict.mark} {one_line(point_words(group.coordinates))}: {group.verdict}, {group.worst.reason}"


def _details(found: Assessment) -> dict[str, Any]:
    """Return the what-if and the folded parts."""
    cells, runs = found.cells, [cell.run for cell in found.cells]
    tracked = next((run for run in runs if run.is_reference and run.has_exponents), None)
    gravest = sorted(found.judged, key=lambda group: -group.verdict.value)[:MOST_HEADROOMS]
    return {
        "whatif": sections.whatif_table(tracked) if tracked else "",
        "whatif_of": f"({point_words(tracked.coordinates)})" if tracked else "",
        "headrooms": [
            (point_words(group.coordinates), sections.headroom_table(group.worst.run))
            for group in gravest
            if group.worst.run.record.norm_layers
        ],
        "cells": sections.cells_table(cells),
        "cells_left": max(0, len(cells) - sections.MOST_ROWS),
        "rules": appendix.rules_table(),
        "constants": appendix.constants_table(found.scenario.tolerance),
        "spikes": spikes_table(cells),
        "environment": appendix.environment_table(runs),
        **appendix.notes_of(runs),
        "commands": [
            command_for(found.scenario, cell.coordinates)
            for cell in islice((cell for cell in cells if not cell.run.is_reference), MOST_COMMANDS)
        ],
    }
