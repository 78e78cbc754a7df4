"""Joint pages: the claims of several scenarios on one page, each with the published number, ours, and its outcome.

A scenario asks for a page by `page:`; the page stands beside the scenarios' directories, under its own name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normstab.assess.assessment import Assessment
from normstab.assess.expected.expectations import ExpectationResult
from normstab.assess.expected.outcome import Outcome, all_of
from normstab.assess.norm_costs import NORMS, norm_cost
from normstab.experiment.records.files import read_plain_file, write_atomically
from normstab.experiment.scenario.document import Claim
from normstab.report.markdown import Rendered, fill_template, quoted
from normstab.report.pictures.claim_plots import claim_plot
from normstab.report.sections import alert_word
from normstab.report.words import OUTCOME_MARKS, items_of

__all__ = ["reason_to_keep", "render_page", "write_page"]

NO_EVIDENCE = "no evidence"  # as a finding says that its records are missing
TITLES = {"norm_matters": "Norm matters, claim by claim", "low_precision": "Low-precision training, claim by claim"}
"""The titles of the pages that shipped scenarios have; another page is titled by its name."""
COMPARES_NORMS = "norm_matters"
"""The page that says, below its claims, what each norm costs."""


def render_page(name: str, found: Mapping[str, Assessment]) -> Rendered:
    """Return the page called `name`; `found` are the judged scenarios by the path of their report from the page."""
    files: dict[str, str] = {}
    claimed = [(claim, one, link) for link, one in found.items() for claim in one.scenario.claims]
    claimed.sort(key=lambda each: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", each[0].id)])
    claims = [_claim(*each, files) for each in claimed]
    outcomes = [claim["plain_outcome"] for claim in claims]
    counted = [f"{outcomes.count(outcome)} {outcome}" for outcome in Outcome if outcome in outcomes]
    lines = [f"**{len(claims)} claims: {', '.join(counted)}.**" if claims else "**No claim yet.**"]
    lines.append(
        f"From {len(found)} scenarios: {', '.join(assessment.scenario.name for assessment in found.values())}."
    )
    values = {
        "title": TITLES.get(name, name.replace("_", " ")),
        "headline": f"> [!{alert_word(outcomes)}]\n{quoted(lines)}",
        "claims": claims,
        "costs": [norm_cost(norm) for norm in NORMS] if name == COMPARES_NORMS else [],
    }
    return Rendered(fill_template("page.md.j2", values), files)


def reason_to_keep(found: Sequence[Assessment], directory: Path) -> str:
    """Return why the page in `directory` should stay: it has more claims evaluated; empty where it has not."""
    path = directory / "report.md"
    results = [_results(claim, one) for one in found for claim in one.scenario.claims]
    now = sum(_outcome(one) is not Outcome.NOT_EVALUATED and _found(one) != NO_EVIDENCE for one in results)
    shown = claims_shown(path)
    if shown <= now:
        return ""
    return f"{path}: has {shown} claims evaluated, the records here evaluate {now} of them; --force replaces it"


def write_page(name: str, found: Mapping[Path, Assessment], directory: Path) -> Path:
    """Write the page into `directory`; `found` are the judged scenarios by their directories. Return its path."""
    up = {Path("..") / place.name / "report.md": assessment for place, assessment in sorted(found.items())}
    rendered = render_page(name, {path.as_posix(): assessment for path, assessment in up.items()})
    for path, text in rendered.files.items():
        write_atomically(directory / path, text)
    write_atomically(directory / "report.md", rendered.text)
    return directory / "report.md"


def _claim(claim: Claim, found: Assessment, link: str, files: dict[str, str]) -> dict[str, Any]:
    """Return what the template shows of one claim."""
    results = _results(claim, found)
    outcome = _outcome(results)
    svg = claim_plot(claim, found)
    plot = f"plots/{re.sub(r'[^A-Za-z0-9_.-]', '-', claim.id)}.svg" if svg else ""
    if svg:
        files[plot] = svg
    return {
        "id": claim.id,
        "anchor": re.sub(r"[^a-z0-9 _-]", "", claim.id.lower()).replace(" ", "-"),
        "text": claim.text,
        "paper": (claim.paper or "no number").replace("|", "\\|"),
        "source": f" ({claim.source})" if claim.source else "",
        "found": _found(results).replace("|", "\\|"),
        "outcome": f"{OUTCOME_MARKS[outcome]} {outcome}",
        "plain_outcome": outcome,
        "scenario": found.scenario.name,
        "link": link,
        "setting": _setting(found),
        "findings": [f"{OUTCOME_MARKS[r.outcome]} {r.outcome}: {r.statement}. {_sentence(r)}" for r in results],
        "plot": plot,
    }


def _results(claim: Claim, found: Assessment) -> list[ExpectationResult]:
    """Return what became of a claim's expectations; none without a record: nothing speaks for or against it."""
    return [result for result in found.expectations if result.claim == claim.id] if has_records(found) else []


def has_records(found: Assessment) -> bool:
    """Whether any cell of the scenario has a record here."""
    return bool(found.cells or found.swept)


def _found(results: Sequence[ExpectationResult]) -> str:
    """Return the numbers that a claim's expectations rest on."""
    return "; ".join(dict.fromkeys(r.finding.found for r in results if r.finding.found)) or "-"


def claims_shown(path: Path) -> int:
    """Return how many claims of the page at `path` were evaluated; 0 where there is no page that reads."""
    try:
        text = read_plain_file(path).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return 0
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    return sum(not line.endswith(f"{Outcome.NOT_EVALUATED} |") and f"| {NO_EVIDENCE} |" not in line for line in rows)


def _outcome(results: Sequence[ExpectationResult]) -> Outcome:
    """Return a claim's outcome: that of all its expectations that were evaluated."""
    findings = [result.finding for result in results if result.outcome is not Outcome.NOT_EVALUATED]
    return all_of(findings).outcome if findings else Outcome.NOT_EVALUATED


def _sentence(result: ExpectationResult) -> str:
    """Return why, as a sentence."""
    reason = result.finding.reason
    return reason[:1].upper() + reason[1:] + "."


def _setting(found: Assessment) -> str:
    """Return what was run, in a few words."""
    runs = [cell.run for cell in found.cells] or [run for group in found.swept for run in group.runs]
    if not has_records(found):
        return f"not run here: `normstab run {found.scenario.name}`"
    run = runs[0]
    data, train = run.data, run.record.cell.get("train", {})
    seeds = max((len(group.cells) for group in found.groups), default=1)
    return (
        f"{run.model.get('name')} on {data.name} ({data.train:,} + {data.test:,} {items_of(run)}), "
        f"{train.get('epochs')} epochs, {seeds} seed{'' if seeds == 1 else 's'}"
    )
