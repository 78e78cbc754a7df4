"""What became of the remedies that were tried, as a file beside the records: read again, they need no training.

Which trainings they rest on, and how those are judged, is `search`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from normstab.assess.causes.remedies import Remedy
from normstab.errors import RecordError
from normstab.experiment.records.files import json_text, read_json, write_atomically

__all__ = ["TRIED_FILE", "TriedRemedy", "read_tried", "with_tried", "write_tried"]

TRIED_FILE = Path("remedies") / "tried.json"
"""Where the outcomes are, beside the records of a run; the trainings they rest on are in the same folder."""

VERSION = 1
Fate = Literal["helped", "did not help", "not decided", "costs too much"]


@dataclass(frozen=True)
class TriedRemedy:
    """What became of the failing `cell` with a remedy's `change`, in `steps` steps from step `start` on.

    `without` and `verdict` are the verdicts of these steps without the change and with it; empty where it cost too
    much to be tried. `reason` says why, in a sentence.
    """

    cell: str
    remedy: str
    change: Mapping[str, Any]
    fate: Fate
    start: int
    steps: int
    without: str = ""
    verdict: str = ""
    reason: str = ""

    @property
    def was_tried(self) -> bool:
        """Whether there was a training."""
        return self.fate != "costs too much"

    @property
    def sentence(self) -> str:
        """The outcome in words, with what it rests on."""
        if not self.verdict:
            return f"{self.fate}: {self.reason}" if self.reason else self.fate
        return f"{self.fate}: {self.verdict} after {self.steps} steps from step {self.start}, {self.without} without it"


def with_tried(remedies: Sequence[Remedy], cell: str, tried: Iterable[TriedRemedy]) -> tuple[Remedy, ...]:
    """Return the remedies of the failing `cell`, by rank, each with what became of it where it was tried."""
    known = {(each.remedy, tuple(sorted(each.change.items()))): each for each in tried if each.cell == cell}
    found = []
    for remedy in remedies:
        fate = known.get((remedy.name, tuple(sorted(remedy.change.items()))))
        if fate is None or remedy.tested is not None:  # a whole training tells more than a part of one
            found.append(remedy)
            continue
        helped = {"helped": True, "did not help": False}.get(fate.fate)
        found.append(replace(remedy, tried=fate.sentence, has_helped=helped is True, has_failed=helped is False))
    return tuple(sorted(found, key=lambda remedy: remedy.rank))


def write_tried(directory: Path, tried: Sequence[TriedRemedy]) -> None:
    """Write the outcomes beside the records in `directory`."""
    document = {"version": VERSION, "tried": [asdict(each) for each in tried]}
    write_atomically(directory / TRIED_FILE, json_text(document))


def read_tried(directory: Path) -> list[TriedRemedy]:
    """Return the outcomes beside the records in `directory`; none where nothing was tried.

    Raises RecordError, naming the file, where it is damaged or of another version.
    """
    path = directory / TRIED_FILE
    if not path.exists():
        return []
    document = read_json(path)
    try:
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']!r}, this normstab reads {VERSION}")
        return [_checked(TriedRemedy(**each)) for each in document["tried"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path}: not outcomes of remedies: {error}; remove it and run the scenario again") from error


def _checked(tried: TriedRemedy) -> TriedRemedy:
    """Return an outcome whose fields are of the types that a report shows."""
    texts = (tried.cell, tried.remedy, tried.fate, tried.without, tried.verdict, tried.reason)
    if not all(isinstance(text, str) for text in texts) or not isinstance(tried.change, dict):
        raise ValueError("a field of another type")
    if not all(isinstance(value, str | int | float) for value in tried.change.values()):
        raise ValueError("a change that is no text or number")
    if not all(isinstance(number, int) for number in (tried.start, tried.steps)):
        raise ValueError("steps that are no whole numbers")
    if tried.fate not in ("helped", "did not help", "not decided", "costs too much"):
        raise ValueError(f"fate {tried.fate!r}")
    return tried
