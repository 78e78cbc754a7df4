"""The catalogues as tables: every name a scenario may use, with what it is.

Nothing here needs torch, and a table loads its own catalogue only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from normstab.errors import lookup
from normstab.numerics.formats import FORMATS, Format
from normstab.numerics.recipes import RECIPES, UNIFORM

__all__ = ["LISTINGS", "listing"]

Rows = list[dict[str, str | int | float | None]]


def listing(kind: str) -> Rows:
    """Return the rows of the catalogue called `kind`, one of LISTINGS."""
    return lookup(LISTINGS, kind, what="catalogue")()


def _formats() -> Rows:
    return [_format_row(name, format) for name, format in FORMATS.items()]


def _format_row(name: str, format: Format) -> dict[str, str | int | float | None]:
    return {
        "name": name,
        "precision": format.precision,
        "emin": format.emin,
        "emax": format.emax,
        "max": format.max,
        "least": format.min_subnormal,
        "overflow to": format.overflow,
    }


# The values for which the scale estimates sigma: s = C times the mean, the maximum ... of |x - mean|.
SCALES = {
    "l2": "root of the mean square",
    "l1": "mean magnitude, times C",
    "linf": "largest magnitude, times C(n)",
    "topk": "mean of the k largest magnitudes, times C(n)",
    "range": "largest minus least, times C(n)",
    "lp": "p-th root of the mean p-th power",
}


def _norms() -> Rows:
    from normstab.norms.catalogue import NORMS

    return [{"name": name, "scale": SCALES[spec.kind]} for name, spec in NORMS.items()]


def _recipes() -> Rows:
    from normstab.numerics.precision import Precision

    return [
        {
            "name": name,
            "is": row.summary,
            "precision": str(Precision.parse(row.precision)),
            "stays wide": " ".join(row.wide) or None,
            "source": row.source,
        }
        for name, row in {**RECIPES, "uniform:fp16": UNIFORM}.items()
    ]


def _models() -> Rows:
    from normstab.experiment.network.language_models import LANGUAGE_MODELS
    from normstab.experiment.network.models import MODELS

    of_images: Rows = [{"name": name, "width": row.width, "network": row.summary} for name, row in MODELS.items()]
    return of_images + [
        {"name": name, "width": each.width, "network": f"{each.summary} (takes {each.takes})"}
        for name, each in LANGUAGE_MODELS.items()
    ]


def _datasets() -> Rows:
    from normstab.experiment.data.datasets import DATASETS
    from normstab.experiment.data.token_sets import TOKEN_SETS

    of_images: Rows = [
        {
            "name": name,
            "train": row.train,
            "test": row.test,
            "classes": row.classes,
            "side": row.side,
            "needs": "root" if row.needs_root else None,
            "set": row.summary,
        }
        for name, row in DATASETS.items()
    ]
    return of_images + [
        {
            "name": name,
            "train": each.train,
            "test": each.test,
            "classes": each.targets,
            "side": None,
            "needs": "root, or the packages" if "root" in each.settings else None,
            "set": f"{each.summary} ({each.kind})",
        }
        for name, each in TOKEN_SETS.items()
    ]


def _scenarios() -> Rows:
    from normstab.experiment.scenario.reader import scenario_paths

    return [{"name": name, "question": _question(path)} for name, path in scenario_paths().items()]


_QUESTION = re.compile(r"^question:[ \t]*(?:[>|]-?)?(.*(?:\n[ \t]+.*)*)", re.MULTILINE)


def _question(path: Path) -> str:
    """Return a file's question without parsing all of it: a list of names must not take seconds."""
    match = _QUESTION.search(path.read_text(encoding="utf-8"))
    return " ".join(match[1].split()).strip("\"'") if match else ""


def _metrics() -> Rows:
    from normstab.experiment.scenario.metric_names import METRIC_NAMES, SWEEP_METRICS, TOKEN_METRICS

    kinds = {
        **dict.fromkeys(METRIC_NAMES, "a trained cell"),
        **dict.fromkeys(TOKEN_METRICS, "a cell trained on tokens"),
    }
    return [{"name": name, "of": of} for name, of in {**kinds, **dict.fromkeys(SWEEP_METRICS, "a sweep")}.items()]


LISTINGS: dict[str, Callable[[], Rows]] = {
    "formats": _formats,
    "recipes": _recipes,
    "norms": _norms,
    "models": _models,
    "datasets": _datasets,
    "scenarios": _scenarios,
    "metrics": _metrics,
}
"""Catalogue name -> the function that makes its rows."""
