"""Which line of the user's code ran an operation, noted when a module first runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from normstab.numerics.ledger import Site
from normstab.simulation.around.places import Place

__all__ = ["LIBRARIES", "Sources"]

PACKAGE = Path(__file__).parents[1]
# Whose lines are not the user's.
LIBRARIES = (str(Path(torch.__file__).parent), str(PACKAGE))
# What calls a model on behalf of a user: beyond it are a command line's and a test runner's own lines.
ENTRANCES = (str(PACKAGE / "testing"), str(PACKAGE / "experiment"), str(PACKAGE / "cli.py"))


class Sources:
    """Lines of code by module and operation. Looking one up walks the stack, so each pair is looked up once."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, str]] = {}
        self.line = ""  # of the step of a compiled graph, in which no user's code runs

    def note(self, place: Place, operation: str) -> None:
        """Note the user's innermost line, unless that is known. In a backward pass there is none."""
        known = self._lines.get(place.name)
        if known is None:
            known = self._lines[place.name] = {}
        if operation not in known and place.direction != "backward":
            known[operation] = self.line or _user_line()

    @property
    def lines(self) -> dict[str, dict[str, str]]:
        """The lines by module and operation, as plain data."""
        return self._lines

    def add(self, lines: dict[str, dict[str, str]]) -> None:
        """Take lines of another process where there is none."""
        for module, found in lines.items():
            known = self._lines.setdefault(module, {})
            known |= {operation: line for operation, line in found.items() if not known.get(operation)}

    def of(self, site: Site) -> str | None:
        """Return "file.py:12" of a site; of a gradient, that of its operation or of its module's first one."""
        known = {name: line for name, line in self._lines.get(site.module, {}).items() if line}
        name = site.operation
        while name:
            if name in known:
                return known[name]
            name = name.rpartition(".")[0]
        forward = site.operation.partition(".")[0].removesuffix("_backward")
        return known.get(forward) or next(iter(known.values()), None)


def _user_line() -> str:
    """Return the innermost line outside torch and normstab, or "" where normstab itself called the model."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        if frame.f_code.co_filename.startswith(ENTRANCES):
            return ""
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
