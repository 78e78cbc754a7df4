"""A baseline: how far each comparison of a test suite was off when it was recorded, and what is worse since.

For suites that cannot be made stable at once: what is known may stay, what becomes worse fails. Needs no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normstab.errors import NormstabError

__all__ = ["WORSE", "Baseline", "key_of", "read_baseline", "write_baseline"]

WORSE = 2.0
"""An error of more than this factor of the recorded one is worse: a bit of the significand."""
VERSION = 1


@dataclass(frozen=True)
class Baseline:
    """Recorded rows by their key; a row has `passed` and `error`, the greatest, None where it was not finite."""

    rows: Mapping[str, Mapping[str, Any]]

    def complaint(self, key: str, *, passed: bool, error: float, text: str) -> str | None:
        """Return why a comparison fails beside its baseline, or None; `text` is what it says by itself.

        What was not recorded is judged by itself. What was, fails where its error is more than WORSE times the
        recorded one, or is not finite and was: whether it passed by itself or not.
        """
        known = self.rows.get(key)
        if known is None:
            return None if passed else text
        before = math.inf if known.get("error") is None else float(known["error"])
        if error <= WORSE * before or error == before:
            return None
        return f"{text.splitlines()[0]}\nWorse than its baseline: off by {error:.3g}, recorded {before:.3g}\n{text}"


def key_of(test: str, number: int) -> str:
    """Return the key of a test's comparison, counted from 0."""
    return test if number == 0 else f"{test} #{number + 1}"


def read_baseline(path: Path) -> Baseline:
    """Return the baseline in `path`; raise NormstabError where it is none."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        rows = plain["tests"] if plain["version"] == VERSION else None
        if isinstance(rows, dict) and all(isinstance(row, dict) and "error" in row for row in rows.values()):
            return Baseline(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NormstabError(f"{path}: not a baseline of version {VERSION}: {error}") from error
    raise NormstabError(f"{path}: not a baseline of version {VERSION}; remove it, and the next run records it anew")


def write_baseline(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what was found as the baseline, tests in order of their names."""
    numbers: dict[str, int] = {}
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        number = numbers.get(row["test"], 0)
        numbers[row["test"]] = number + 1
        names = ("passed", "precision", "worst", "error", "ulps")
        plain = {name: row[name] for name in names}
        plain |= {name: plain[name] if math.isfinite(plain[name]) else None for name in ("error", "ulps")}
        kept[key_of(row["test"], number)] = plain
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"version": VERSION, "tests": dict(sorted(kept.items()))}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
