"""The text of a scenario file: bounded YAML 1.2 to plain data, each value with its place in the file.

Only scalars, lists and mappings come out; tags are refused, so that no file can run code. What the values
mean is `scenario`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from normstab.errors import ScenarioError

__all__ = ["MOST_SHOWN", "Loc", "Mark", "ScenarioText", "parse_text", "read_text", "spelled"]

# A place in a document: the keys and indices that lead to it.
Loc = tuple[str | int, ...]

MOST_BYTES = 32 * 1024
MOST_ALIASES = 100
# Reading one takes up to a tenth of a millisecond; the largest shipped file has under 500.
MOST_VALUES = 4_000
MOST_LEVELS = 32
MOST_SHOWN = 40
"""Problems that one message tells."""


@dataclass(frozen=True)
class Mark:
    """A place: `place` as `file:line:column` (or the option it came from), the line, and the column in it."""

    place: str
    line: str = ""
    column: int = 0
    order: tuple[int, int] = (0, 0)

    def shown(self) -> str:
        """Return the source line with a caret under the column, indented; empty where there is no line."""
        if not self.line.strip():
            return ""
        first = max(0, self.column - 80)
        return f"\n    {self.line[first : first + 140]}\n    {' ' * (self.column - 1 - first)}^"


@dataclass(frozen=True)
class ScenarioText:
    """A scenario's plain document, and where each of its values (and keys) stands."""

    name: str
    document: Any
    marks: dict[Loc, Mark] = field(default_factory=dict)
    keys: dict[Loc, Mark] = field(default_factory=dict)

    def mark(self, loc: Loc, *, at_key: bool = False) -> Mark:
        """Return the place of `loc`, or of the nearest enclosing value that has one."""
        if at_key and loc in self.keys:
            return self.keys[loc]
        for length in range(len(loc), -1, -1):
            if loc[:length] in self.marks:
                return self.marks[loc[:length]]
        return Mark(self.name)


def spelled(loc: Loc) -> str:
    """Return `grid.norm[2]` for ("grid", "norm", 2)."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def read_text(path: Path) -> ScenarioText:
    """Return the text in `path`; refuse what is too large, is no UTF-8 or no YAML, with the place."""
    name = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ScenarioError(f"{name}: cannot read: {error.strerror or error}; see `normstab list scenarios`") from error
    if len(content) > MOST_BYTES:
        raise ScenarioError(
            f"{name}: the file is larger than {MOST_BYTES // 1024} KiB, the limit of a scenario; "
            "split it into several files and give them all to `normstab run`"
        )
    try:
        return parse_text(content.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        found = content[error.start]
        raise ScenarioError(
            f"{name}: not a text file: byte 0x{found:02x} at offset {error.start} is not UTF-8; "
            "a scenario is a YAML file, see `normstab show quickstart`"
        ) from error


def parse_text(text: str, name: str) -> ScenarioText:
    """Return the one YAML document in `text`; `name` stands in front of line and column in messages."""
    try:
        builder = _Builder(name, text.splitlines(), YAML(typ="safe", pure=True).parse(text))
        return builder.document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        problem = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise ScenarioError(f"{_placed(name, text.splitlines(), line, column, f'not YAML: {problem}')}") from error
    except ReaderError as error:
        raise ScenarioError(f"{name}: not a text file: {error.reason} (character {error.position})") from error
    except YAMLError as error:
        raise ScenarioError(f"{name}: not YAML: {error}") from error


def _placed(name: str, lines: list[str], line: int, column: int, message: str) -> str:
    """Return the message behind its place, with the source line below."""
    mark = _mark(name, lines, line, column)
    return f"{mark.place}: {message}{mark.shown()}"


def _mark(name: str, lines: list[str], line: int, column: int) -> Mark:
    """Return the mark of a line and column that count from 0."""
    shown = lines[line] if line < len(lines) else ""
    return Mark(f"{name}:{line + 1}:{column + 1}", shown, column + 1, (line, column))


# Source: YAML 1.2.2, section 10.3.2 (core schema); digits are bounded so that no number is slow to read.
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,30}\Z")
_OTHER_INT = re.compile(r"0o[0-7]{1,30}\Z|0x[0-9a-fA-F]{1,30}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,6})?\Z")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")


def _plain(text: str) -> Any:
    """Return the value of a scalar without quotes."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.match(text):
        return int(text)
    if _OTHER_INT.match(text):
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    if match := _SPECIAL.match(text):
        return float("nan") if match[3] else float(f"{match[1]}inf")
    return text


class _Builder:
    """Plain data from the parser's events, within the limits; all duplicate keys are found before raising."""

    def __init__(self, name: str, lines: list[str], events: Iterator[Any]) -> None:
        self._name, self._lines, self._events = name, lines, events
        self._marks: dict[Loc, Mark] = {}
        self._keys: dict[Loc, Mark] = {}
        self._anchors: dict[str, tuple[Any, Loc, int]] = {}
        self._values = 0
        self._aliases = 0
        self._duplicates: list[str] = []

    def document(self) -> ScenarioText:
        """Return the only document; raise where there is none or more than one."""
        kinds = (type(event).__name__ for event in islice(self._events, 2))
        if list(kinds) != ["StreamStartEvent", "DocumentStartEvent"]:
            raise ScenarioError(
                f"{self._name}: the file is empty; a scenario starts with 'version: 1', see `normstab show quickstart`"
            )
        document = self._value(next(self._events), ())
        next(self._events)
        if type(next(self._events)).__name__ != "StreamEndEvent":
            raise ScenarioError(f"{self._name}: more than one YAML document ('---'); a scenario file holds one")
        if self._duplicates:
            more = len(self._duplicates) - MOST_SHOWN
            raise ScenarioError("\n".join([*self._duplicates[:MOST_SHOWN], *([f"... and {more} more"] * (more > 0))]))
        return ScenarioText(self._name, document, self._marks, self._keys)

    def _fail(self, event: Any, message: str) -> ScenarioError:
        at = event.start_mark
        return ScenarioError(_placed(self._name, self._lines, at.line, at.column, message))

    def _value(self, event: Any, loc: Loc) -> Any:
        self._marks[loc] = _mark(self._name, self._lines, event.start_mark.line, event.start_mark.column)
        kind = type(event).__name__
        if kind == "AliasEvent":
            return self._alias(event, loc)
        if event.ctag is not None and str(event.ctag) not in ("", "!", "None"):
            raise self._fail(event, f"the tag {str(event.ctag)!r} is not allowed: a scenario holds plain values only")
        if len(loc) > MOST_LEVELS:
            raise self._fail(event, f"more than {MOST_LEVELS} nested levels")
        before = self._values
        self._count(event, 1)
        found = {"ScalarEvent": self._scalar, "SequenceStartEvent": self._list, "MappingStartEvent": self._mapping}
        value = found[kind](event, loc)
        if event.anchor:
            self._anchors[event.anchor] = (value, loc, self._values - before)
        return value

    def _count(self, event: Any, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise self._fail(event, f"more than {MOST_VALUES} values once the aliases are expanded")

    def _scalar(self, event: Any, loc: Loc) -> Any:
        return _plain(event.value) if event.style in (None, "") else event.value

    def _list(self, event: Any, loc: Loc) -> list[Any]:
        values: list[Any] = []
        while type(item := next(self._events)).__name__ != "SequenceEndEvent":
            values.append(self._value(item, (*loc, len(values))))
        return values

    def _mapping(self, event: Any, loc: Loc) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while type(key := next(self._events)).__name__ != "MappingEndEvent":
            if type(key).__name__ != "ScalarEvent":
                raise self._fail(key, "a key is a plain word, not a list, a mapping or an alias")
            inner = (*loc, key.value)
            mark = _mark(self._name, self._lines, key.start_mark.line, key.start_mark.column)
            if key.value in values:
                first = self._keys[inner].place
                message = f"{spelled(inner)}: the key {key.value!r} is given twice (first at {first}); remove one"
                self._duplicates.append(f"{mark.place}: {message}{mark.shown()}")
            self._keys[inner] = mark
            values[key.value] = self._value(next(self._events), inner)
        return values

    def _alias(self, event: Any, loc: Loc) -> Any:
        self._aliases += 1
        if self._aliases > MOST_ALIASES:
            raise self._fail(event, f"more than {MOST_ALIASES} aliases")
        if event.anchor not in self._anchors:
            raise self._fail(event, f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
        value, _, size = self._anchors[event.anchor]
        self._count(event, size)
        return _copied(value)


def _copied(value: Any) -> Any:
    """Return an independent copy of plain data, so that an override changes one place only."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
