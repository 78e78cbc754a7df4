"""Every field of a scenario file as Markdown tables, made from the schema, so that the documentation is never stale."""

from __future__ import annotations

import json
from typing import Any

from normstab.experiment.scenario.authoring.schema import CATALOGUES, schema

__all__ = ["field_tables"]

Plain = dict[str, Any]  # a part of a JSON Schema
# Definition of the schema -> the heading under which its fields stand, in the order of the page.
SECTIONS = {
    "DatasetSpec": "dataset",
    "ModelSpec": "model",
    "NormNoiseSpec": "model.norm_noise",
    "TrainSpec": "train",
    "OptimizerSpec": "train.optimizer",
    "ScheduleSpec": "train.schedule",
    "NumericsSpec": "numerics",
    "SweepDocument": "sweep",
    "Claim": "claims",
    "Plot": "claims.plot",
    "VerdictExpectation": "expect: a verdict",
    "BoundExpectation": "expect: a bound on a metric",
    "OrderExpectation": "expect: one better than another",
    "WithinExpectation": "expect: equivalent",
    "RecoveryExpectation": "expect: a gap regained",
    "IdenticalExpectation": "expect: bit for bit the same",
    "AnyExpectation": "expect: any of several",
}
# What a definition is called where a field refers to it.
WORDS = {
    "Grid": "axes",
    "Settings": "paths",
    "Norm": "a norm",
    "Precision": "a precision",
    "Metric": "a metric",
}


def field_tables() -> str:
    """Return a table of every field for the top level and for each section: what it may be, its default, what it is."""
    found = schema()
    parts = ["### The top level", "", _table(found)]
    for name, heading in SECTIONS.items():
        parts += ["", f"### `{heading}`" if ":" not in heading else f"### {heading}", "", _table(found["$defs"][name])]
    parts += ["", "### Metrics", "", _names(CATALOGUES["Metric"]["enum"])]
    return "\n".join(parts) + "\n"


def _table(spec: Plain) -> str:
    """Return the table of one mapping's fields; a required one has no default."""
    rows = ["| field | may be | default | what it is |", "|---|---|---|---|"]
    required = spec.get("required", ())
    for name, field in spec["properties"].items():
        default = "**required**" if name in required else _default(field)
        rows.append(f"| `{name}` | {_kind(field)} | {default} | {field.get('description', '')} |")
    return "\n".join(rows)


def _default(field: Plain) -> str:
    """Return a default as the file would have it, empty where it is an empty list or mapping."""
    value = field.get("default", "")
    return "" if value in ("", [], {}) else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _kind(field: Plain) -> str:
    """Return in words what a field may be."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        is_expectation = name.endswith("Expectation")
        return WORDS.get(name) or ("an expectation" if is_expectation else f"a mapping, `{SECTIONS[name]}`")
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return _names(field["enum"])
    if "anyOf" in field or "oneOf" in field:
        kinds = [_kind(inner) for inner in field.get("anyOf") or field["oneOf"]]
        return " or ".join(dict.fromkeys(kinds))
    kind = _WORDS.get(field.get("type", ""), "anything")
    if kind == "list":
        return f"list of {_kind(field['items'])}" if field.get("items") else "list"
    if kind == "mapping" and field.get("additionalProperties") not in (None, True, False):
        return f"mapping to {_kind(field['additionalProperties'])}"
    return kind + _bounds(field)


def _names(names: list[Any]) -> str:
    """Return names in code marks."""
    return " ".join(f"`{name}`" for name in names)


def _bounds(field: Plain) -> str:
    """Return the bounds of a number, where it has narrow ones."""
    found = []
    for key, sign in (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<=")):
        if key in field and abs(field[key]) < 2**31 - 1:
            found.append(f"{sign} {field[key]:g}")
    return f" {', '.join(found)}" if found else ""


_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "array": "list",
    "object": "mapping",
}
