"""The answer of `bounds` as text, as JSON, and as a report with its plot: bound and error, site by site.

Pure but for `write_bounds`, which writes the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from normstab.experiment.records.files import write_atomically
from normstab.numerics.bounds import random_bits
from normstab.numerics.precision import Precision
from normstab.report.pictures.svg import COLOURS, draw
from normstab.report.words import aligned, number
from normstab.search.error_growth import Growth
from normstab.search.measured_bounds import Bounds, SiteBound

__all__ = ["bounds_json", "bounds_text", "growth_text", "write_bounds"]

HEADERS = ["site", "operation", "n", "results", "bound", "probable", "measured", "ratio", "of probable", "beyond"]
NUMERIC = range(2, len(HEADERS))


def bounds_json(found: Bounds) -> dict[str, Any]:
    """Return the answer as JSON data: `sites` in the order in which they ran, and how many violate a bound."""
    return {
        "precision": found.precision,
        "failure": found.failure,
        "violations": len(found.violations),
        "sites": [asdict(site) for site in found.sites],
        "notes": list(found.notes),
    }


def bounds_text(found: Bounds) -> str:
    """Return the answer for a terminal: what holds, then the table."""
    return "\n\n".join([_headline(found), _table(found), *_remarks(found)])


def _headline(found: Bounds) -> str:
    """Return in one sentence whether the bounds held, and which site came nearest."""
    bounded = [site for site in found.sites if site.ratio is not None]
    if not bounded:
        return f"{found.precision}: no sum, mean, product, softmax or norm with a known bound was rounded"
    nearest = max(bounded, key=lambda site: site.ratio or 0.0)
    if found.violations:
        first = _name(found.violations[0])
        return f"{found.precision}: {len(found.violations)} sites exceed their deterministic bound, first {first}"
    return (
        f"{found.precision}: no deterministic bound is exceeded at {len(bounded)} sites; nearest to it is "
        f"{_name(nearest)} with {100 * (nearest.ratio or 0.0):.2g} % of it"
    )


def _name(site: SiteBound) -> str:
    return f"{site.site} ({site.operation})"


def _table(found: Bounds) -> str:
    """Return the sites as a Markdown table."""
    rows = [
        (
            site.site, site.operation, site.n, site.results, number(site.bound), number(site.likely),
            number(site.measured), number(site.ratio, 2), number(site.likely_ratio, 2), site.beyond,
        )
        for site in found.sites
    ]  # fmt: skip
    return aligned(HEADERS, rows, right=NUMERIC)


def _remarks(found: Bounds) -> list[str]:
    """Return what the columns mean, and what else there is to say."""
    remarks = [
        "bound, probable and measured are relative to the sum of the magnitudes of what is added up (of a norm's scale "
        f"and a softmax, to the result); a probable bound fails with probability {found.failure:g} at most, if "
        "rounding to nearest behaves like chance. No bound speaks of results beyond the format's range."
    ]
    longest = max((site.n for site in found.sites), default=0)
    rounding = Precision.parse(found.precision).rounding
    if rounding.is_stochastic and rounding.bits < random_bits(longest):
        remarks.append(
            f"{rounding.bits} random bits leave a bias that outgrows the spread in sums of {longest}: "
            f"{random_bits(longest)} suffice"
        )
    return [*remarks, *(f"note: {note}" for note in found.notes)]


def growth_text(found: Sequence[Growth]) -> str:
    """Return the laws of growth as a table: the error at the least and the greatest n, and both exponents."""
    rows = [
        (
            growth.what,
            growth.precision,
            f"{growth.lengths[0]} .. {growth.lengths[-1]}",
            number(growth.measured[0]),
            number(growth.measured[-1]),
            f"{growth.exponent:.2f}",
            f"{growth.published:g}",
            growth.source,
        )
        for growth in found
    ]
    headers = ["what", "precision", "n", "at the least n", "at the greatest", "exponent", "published", "source"]
    return aligned(headers, rows, right=(3, 4, 5, 6))


def write_bounds(found: Bounds, directory: Path) -> Path:
    """Write `report.md` and its plot to `directory`, and return the report's path."""
    write_atomically(directory / "plots" / "bounds.svg", bounds_plot(found))
    parts = ["# Errors beside their bounds", f"> {_headline(found)}", "![bounds](plots/bounds.svg)", _table(found)]
    write_atomically(directory / "report.md", "\n\n".join([*parts, *_remarks(found)]) + "\n")
    return directory / "report.md"


def bounds_plot(found: Bounds) -> str:
    """Return a plot of bound, probable bound and error over n, on logarithmic axes."""
    shown = [site for site in found.sites if site.bound and site.likely and site.measured]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        n = [site.n for site in shown]
        for name, marker, colour in zip(("bound", "likely", "measured"), "v^o", COLOURS, strict=False):
            label = "probable bound" if name == "likely" else name
            axes.scatter(n, [getattr(site, name) for site in shown], marker=marker, color=colour, label=label, s=22)
        axes.set(xscale="log", yscale="log", xlabel="n, numbers added up", ylabel="relative error")
        axes.legend()

    return draw(6.0, 3.6, paint)
