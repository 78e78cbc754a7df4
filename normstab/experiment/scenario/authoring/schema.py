"""The JSON Schema of a scenario file: the document's shape and every name of the catalogues, for editors to complete.

A name that is made (`top20`, `timm:NAME`, a precision with parts) is not listed and not refused.
"""

from __future__ import annotations

from typing import Any

from normstab.experiment.data.datasets import EVERY_SET
from normstab.experiment.network.models import EVERY_MODEL
from normstab.experiment.scenario.checking.checks import OTHER_NORMS
from normstab.experiment.scenario.document import AXES, DOCUMENT, PATHS, SECTIONS, VARIANT
from normstab.experiment.scenario.metric_names import METRIC_NAMES, SWEEP_METRICS
from normstab.norms.catalogue import NORMS
from normstab.numerics.formats import FORMATS
from normstab.numerics.recipes import RECIPES

__all__ = ["CATALOGUES", "schema"]

Plain = dict[str, Any]  # a part of a JSON Schema


def schema() -> Plain:
    """Return the JSON Schema of a scenario file (draft 2020-12)."""
    found = DOCUMENT.json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "normstab scenario"
    found["properties"]["tolerance"]["default"] = "1pp"
    found["$defs"]["OrderExpectation"]["properties"]["by"]["default"] = "0"
    found["$defs"] |= CATALOGUES
    _name_catalogues(found["$defs"])
    found["$defs"]["TrainSpec"]["properties"]["norm_record"] = _FROM
    values = _values(found["$defs"])
    axes = {axis: values[path] for axis, path in AXES.items()} | {VARIANT: {"type": "string"}} | values
    listed = {axis: {"type": "array", "minItems": 1, "items": value} for axis, value in axes.items()}
    found["$defs"]["Settings"] = {"type": "object", "properties": values}
    found["$defs"]["Grid"] = {"type": "object", "properties": listed, "additionalProperties": False}
    for settings in ("variants", "profiles"):
        found["properties"][settings]["additionalProperties"] = {"$ref": "#/$defs/Settings"}
    for grid in (found["properties"]["grid"], found["$defs"]["SweepDocument"]["properties"]["grid"]):
        del grid["additionalProperties"]
        grid["$ref"] = "#/$defs/Grid"
    return found


# A norm of the catalogue, topK and lpP, and the names in capitals.
_MADE_NORM = "^ *([Tt][Oo][Pp][0-9]+|[Ll][Pp][0-9.]+|L[12]|L[Ii][Nn][Ff]|R[Aa][Nn][Gg][Ee]) *$"
CATALOGUES: Plain = {
    "Norm": {"anyOf": [{"enum": [*NORMS, *OTHER_NORMS]}, {"type": "string", "pattern": _MADE_NORM}]},
    "Precision": {"anyOf": [{"enum": ["native", *FORMATS, *RECIPES]}, {"type": "string"}]},
    "Metric": {"enum": [*METRIC_NAMES, *SWEEP_METRICS]},
}
"""Definitions that fields refer to: the names that stand in several places."""
_NORM, _PRECISION, _METRIC = ({"$ref": f"#/$defs/{name}"} for name in CATALOGUES)

_FROM: Plain = {
    "anyOf": [
        {"type": "string"},
        {"type": "null"},
        {
            "type": "object",
            "properties": {"from": {"type": "object", "description": "Axes in which the recording cell differs."}},
            "required": ["from"],
            "additionalProperties": False,
        },
    ],
    "default": None,
    "description": "Whose channel norms are followed: {from: {variant: wd_on}}.",
}


def _name_catalogues(specs: Plain) -> None:
    """Put the names of the catalogues where a text stood, in place."""
    named: dict[tuple[str, str], Plain] = {
        ("DatasetSpec", "name"): {"enum": list(EVERY_SET)},
        ("ModelSpec", "name"): {"anyOf": [{"enum": list(EVERY_MODEL)}, {"type": "string", "pattern": "^[^:]+:.+$"}]},
        ("ModelSpec", "norm"): {"anyOf": [_NORM, {"type": "object", "additionalProperties": _NORM}]},
        ("NumericsSpec", "precision"): _PRECISION,
    }
    named |= {(spec, "metric"): _METRIC for spec in specs if "metric" in specs[spec].get("properties", {})}
    for (spec, name), names in named.items():
        plain = specs[spec]["properties"][name]
        kept = {key: value for key, value in plain.items() if key not in ("type", "anyOf")}
        specs[spec]["properties"][name] = {**names, **kept}
    specs["NumericsSpec"]["properties"]["rules"]["additionalProperties"] = _PRECISION


def _values(specs: Plain) -> Plain:
    """Return, for every dotted path, what its value may be."""
    found = {}
    for path in PATHS:
        section, _, name = path.rpartition(".")
        plain = specs[SECTIONS[section].__name__]["properties"][name]
        found[path] = {key: value for key, value in plain.items() if key not in ("default", "title")}
    return found
