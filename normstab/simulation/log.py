"""What `record` hands to its user: exponents of a plain run, what every format would do to them, and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, overload

from normstab.numerics.formats import AnyFormat
from normstab.simulation.forecast import NARROW, Forecast, forecast_of, percent
from normstab.simulation.run import Run, in_columns

__all__ = ["Log"]

# The builtin `all`, or its name.
Every = Literal["all"] | Callable[[Iterable[object]], bool]


@dataclass
class Log(Run):
    """A recording, while it runs and afterwards: `ledger`, `first`, `step`, `notes`, `forecast` and `report()`.

    Nothing was rounded: what the ledger counts as overflow, underflow or NaN happened in float32 itself. `every` is
    the distance of the recorded steps.
    """

    every: int = 1

    @overload
    def forecast(self, format: Every = ...) -> dict[str, Forecast]: ...  # type: ignore[overload-overlap]
    @overload
    def forecast(self, format: str | AnyFormat) -> Forecast: ...
    def forecast(self, format: str | AnyFormat | Every = "all") -> Forecast | dict[str, Forecast]:
        """Return the shares of the recorded results that `format` would overflow and flush to zero, and where.

        `all` (the builtin, or its name) gives a forecast for every preset narrower than float32, by name. A forecast
        holds while the values stay as they were. Raises FormatError for a format that does not exist.
        """
        if format == "all" or format is all:
            return {name: forecast_of(self.ledger, name) for name in NARROW}
        return forecast_of(self.ledger, format)  # type: ignore[arg-type]

    def report(self) -> str:
        """Return as plain text what was recorded, what went wrong in float32 itself, and what each format would do."""
        total, every = self.ledger.total(), "" if self.every == 1 else f", one step in {self.every}"
        lines = [f"recorded in float32, nothing rounded: {total.count} results, up to step {self.step}{every}", ""]
        went_wrong = self._first_offences()
        lines += (
            went_wrong if len(went_wrong) > 2 else ["in float32 itself nothing overflowed, vanished or became NaN", ""]
        )
        rows: list[tuple[str, ...]] = [("format", "would overflow", "to zero", "at worst", "site")]
        for name, found in self.forecast(all).items():
            shares = (found.overflow, found.underflow, found.worst_share)
            rows.append((name, *map(percent, shares), found.worst_site))
        lines += ["what each format would do to these results:", "", *in_columns(rows), ""]
        return "\n".join([*lines, *(f"note: {text}" for text in self.notes)]).rstrip() + "\n"
