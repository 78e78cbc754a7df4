"""The answer of `check` in words and as JSON. Pure: it computes nothing and prints nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tabulate import tabulate

from normstab.simulation.forecast import Forecast
from normstab.testing.check import Answer

__all__ = ["answer_json", "answer_junit", "answer_text"]

# So many remedies fit on the first screen.
MOST_REMEDIES = 2

WORDS = {
    "overflow": "overflowed",
    "divide_by_zero": "divided by zero",
    "nan_produced": "produced NaN",
    "underflow": "flushed to zero",
}

LOST = {"absorbed": "addend absorbed", "cancelled": "digits cancelled", "lost_updates": "update lost"}


def answer_text(answer: Answer, *, verbose: bool = False) -> str:
    """Return the answer for a terminal, one screen of it: the verdict first, then where, then what helps.

    `verbose` adds the worst sites, the headroom of the norm layers and the forecast for every other format.
    """
    parts = [f"{answer.verdict} in {answer.precision}: {answer.reason}"]
    if answer.blame is not None and answer.verdict not in ("STABLE", "INCONCLUSIVE"):
        parts.append(f"blame: {answer.blame.sentence}")
    if answer.replaced:
        parts.append(f"norms replaced: {len(answer.replaced)}, now {', '.join(sorted(set(answer.replaced.values())))}")
    if len(answer.losses) > 1:
        first, last, reference = answer.losses[0], answer.losses[-1], answer.reference_losses[-1]
        parts.append(f"loss over {len(answer.losses)} steps: {first:.4g} -> {last:.4g} (fp64: {reference:.4g})")
    parts.append(_first(answer))
    if verbose:
        parts += [_lost(answer), _worst(answer), _headroom(answer), _forecast(answer.forecast)]
    parts.append(_remedies(answer, most=len(answer.remedies) if verbose else MOST_REMEDIES))
    if answer.unrecognised:
        listed = ", ".join(f"{name} ({n})" for name, n in answer.unrecognised.items())
        parts.append(f"not understood, computed as torch does: {listed}")
    parts += [f"note: {note}" for note in answer.notes]
    if not verbose:
        parts.append("--verbose: worst sites, headroom of the norm layers, forecast for other formats")
    return "\n\n".join(part for part in parts if part) + "\n"


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return the answer as JSON data; numbers that are not finite as strings."""
    document = asdict(replace(answer, evidence=None))
    del document["evidence"]
    document["precision"] = str(answer.precision)
    document["passed"] = answer.passed
    names = ("format", "overflow", "underflow", "worst_site", "worst_share")
    document["forecast"] = [{name: getattr(found, name) for name in names} for found in answer.forecast]
    document["worst_sites"] = [{"site": site, **asdict(tally)} for site, tally in answer.worst_sites]
    document["first"] = {
        counter: {"site": site, "step": step, "source": source}
        for counter, (site, step, source) in answer.first.items()
    }
    return _finite(document)  # type: ignore[no-any-return]


def answer_junit(answer: Answer, factory: str) -> str:
    """Return the answer as JUnit XML: one case, failed from DEGRADED on, skipped where INCONCLUSIVE."""
    suite = ElementTree.Element("testsuite", name="normstab check", tests="1", errors="0")
    case = ElementTree.SubElement(suite, "testcase", classname=factory, name=f"{factory} in {answer.precision}")
    told = f"{answer.verdict}: {answer.reason}"
    if not answer.passed:
        ElementTree.SubElement(case, "failure", message=told, type=answer.verdict).text = answer_text(answer)
    elif answer.verdict == "INCONCLUSIVE":
        ElementTree.SubElement(case, "skipped", message=told)
    else:
        ElementTree.SubElement(case, "system-out").text = told
    for tag, attribute in (("failure", "failures"), ("skipped", "skipped")):
        suite.set(attribute, str(len(case.findall(tag))))
    ElementTree.indent(suite)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}'


def _finite(value: Any) -> Any:
    """Return JSON data in which inf and NaN are strings and keys are text."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _first(answer: Answer) -> str:
    """Return the first offence of each kind, with the user's line."""
    if not answer.first:
        return "nothing overflowed, vanished or became NaN"
    rows = [
        (
            WORDS[counter] + (", in float32 too" if counter in answer.own else ""),
            _short(site, 36),
            step,
            _near(source) if source else "(inside a library)",
        )
        for counter, (site, step, source) in answer.first.items()
    ]
    return "first offences\n" + _table(rows, ["what", "site", "step", "your code"])


def _lost(answer: Answer) -> str:
    """Return where most of the precision was lost without any offence."""
    if not answer.lost:
        return ""
    rows = [
        (LOST[counter], _short(site, 36), f"{count:,} of {of:,}" if of else f"{count:,}")
        for counter, (site, count, of) in answer.lost.items()
    ]
    return "precision lost\n" + _table(rows, ["what", "most at", "results there"])


def _short(text: str, most: int) -> str:
    """Return the end of a text that is longer than `most`."""
    return text if len(text) <= most else "..." + text[3 - most :]


def _near(source: str) -> str:
    """Return "file.py:12" relative to the working directory where the file lies below it, else the end of its path."""
    path, _, line = source.rpartition(":")
    with contextlib.suppress(ValueError):
        path = str(Path(path).relative_to(Path.cwd()))
    return _short(f"{path}:{line}", 26)


def _worst(answer: Answer) -> str:
    """Return the sites that lost most."""
    if not answer.worst_sites:
        return ""
    rows = [
        (site, t.count, t.overflow, t.underflow, t.nan_produced, f"{t.largest:.3g}") for site, t in answer.worst_sites
    ]
    return "worst sites\n" + _table(rows, ["site", "results", "overflow", "to zero", "NaN", "largest"])


def _headroom(answer: Answer) -> str:
    """Return how many binades the norm layers have left."""
    rows = [
        (found.layer or "(root)", found.norm, _binades(found.up), found.up_site or "", _binades(found.down))
        for found in sorted(answer.headroom, key=lambda h: math.inf if h.up is None else h.up)
        if found.up is not None
    ]
    if not rows:
        return ""
    return "headroom of the norm layers, in binades of their input\n" + _table(
        rows, ["layer", "norm", "up", "limited by", "down"]
    )


def _binades(value: float | None) -> str:
    """Return a number of binades."""
    return "" if value is None else f"{value:+.1f}"


def _forecast(presets: Sequence[Forecast]) -> str:
    """Return what float32's exponents foretell in every other format."""
    if not any(found.overflow or found.underflow for found in presets):
        return "predicted from float32's exponents: nothing would overflow or vanish in any preset"
    rows = [
        (found.format, _share(found.overflow), _share(found.underflow), _share(found.worst_share), found.worst_site)
        for found in presets
    ]
    headers = ["format", "would overflow", "would vanish", "at worst", "site"]
    return "predicted from float32's exponents\n" + _table(rows, headers)


def _share(value: float) -> str:
    """Return a share as a short percentage."""
    percent = 100 * value
    return "0" if value == 0 else f"{percent:.0f}%" if percent >= 10 else f"{percent:.2g}%"


def _remedies(answer: Answer, *, most: int) -> str:
    """Return what would help, the first `most` of it."""
    if not answer.remedies:
        return ""
    lines = [f"- {remedy.advice} (untested): {remedy.evidence}" for remedy in answer.remedies[:most]]
    return "what would help\n" + "\n".join(lines)


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Return a plain table."""
    return str(tabulate(rows, headers, tablefmt="simple", disable_numparse=True))
