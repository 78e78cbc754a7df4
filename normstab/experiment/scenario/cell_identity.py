"""What a cell is called: words of its place in the grid, and the hash of everything that its result depends on.

Which fields a cell has is `spec`'s business.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from normstab.numerics.version import NUMERICS_VERSION

__all__ = ["Scalar", "hash_of", "hashed_fields", "identity", "slug"]

Scalar = str | int | float | bool | None  # a value on an axis of a grid

# Fields that came after records had been made: left out of the hash at their default, so that older ids stay.
LATER_FIELDS: dict[str, frozenset[str]] = {
    "Cell": frozenset({"code_sha256", "fork", "record"}),
    "ModelSpec": frozenset({"args", "heads", "init", "layers", "norm_layer", "norm_noise"}),
    "TrainSpec": frozenset({"ranks"}),
}
LONGEST_SLUG = 60


def identity(resolved: Iterable[Any], data_sha256: str, code_sha256: str) -> str:
    """Return ten hexadecimal digits of the hash of what is run: specs (or None), data, code and NUMERICS_VERSION."""
    specs = ",".join(_hashed_text(spec) for spec in resolved)
    facts = [json.dumps(NUMERICS_VERSION), json.dumps(data_sha256), f"[{specs}]"]
    facts += [json.dumps(code_sha256)] if code_sha256 else []
    return hashlib.sha256(f"[{','.join(facts)}]".encode()).hexdigest()[:10]


def hash_of(cell_id: str) -> str:
    """Return the part of an id that is a hash: that of what is run, wherever its cell stands in a grid."""
    return cell_id.rpartition("-")[2]


def hashed_fields(spec: Any) -> dict[str, Any]:
    """Return the fields of `spec` that enter a cell's hash."""
    later = LATER_FIELDS.get(type(spec).__name__, frozenset())
    found = {each.name: (getattr(spec, each.name), each.default) for each in fields(spec)}
    return {name: value for name, (value, default) in found.items() if name not in later or value != default}


_ENCODER = json.JSONEncoder(default=hashed_fields, sort_keys=True, separators=(",", ":"))
_TEXT = "_hashed_text"


def _hashed_text(spec: Any) -> str:
    """Return what is hashed of one spec; the cells of a grid share most of their specs, so it is kept with it."""
    if spec is None:
        return "null"
    kept: dict[str, Any] = vars(spec)
    if _TEXT not in kept:
        kept[_TEXT] = _ENCODER.encode(hashed_fields(spec))
    text: str = kept[_TEXT]
    return text


def slug(coordinates: Mapping[str, Scalar]) -> str:
    """Return a readable file name part: the values in order, an axis's initials before a bare number."""
    words = []
    for axis, value in coordinates.items():
        is_bare = isinstance(value, bool | int | float | None)
        words.append(f"{_initials(axis)}{value}" if is_bare else str(value))
    text = re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower()).strip("-.")
    return text[:LONGEST_SLUG].strip("-.") or "cell"


@functools.lru_cache(maxsize=256)
def _initials(axis: str) -> str:
    return "".join(part[0] for part in re.split(r"[._]", axis) if part)
