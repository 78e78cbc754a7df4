"""The pytest plugin: a `stability` fixture, a marker with its settings, and what was found in pytest's own reports.

torch is imported when a test first uses the fixture, never when pytest starts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from normstab.testing.assertions import Stability

__all__ = []

PROPERTY = "normstab"
SETTINGS = ("precision", "against", "rtol", "atol", "grad", "seed")
DEFAULTS = {"precision": "fp16", "against": "fp64"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options `--normstab-*` and the ini keys `normstab_*`."""
    group = parser.getgroup("normstab", "numerical stability")
    group.addoption("--normstab-precision", metavar="SPEC", help="precision of the stability fixture, such as bf16")
    group.addoption("--normstab-against", metavar="SPEC", help="the wide precision it compares with, such as fp64")
    group.addoption("--normstab-report", metavar="DIR", help="write what the stability fixture found to DIR")
    parser.addini("normstab_precision", "precision of the stability fixture", default="")
    parser.addini("normstab_against", "the wide precision that it compares with", default="")
    parser.addini("normstab_report", "directory for what the stability fixture found", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Document the marker, and collect results where they arrive: in the controller, also under xdist."""
    config.addinivalue_line(
        "markers", "normstab(precision, against, rtol, atol, grad, seed): settings of the stability fixture"
    )
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Collector(config), "normstab-collector")


def _setting(config: pytest.Config, name: str) -> str:
    """Return an option, else its ini key, else the default."""
    given = config.getoption(f"normstab_{name}") or config.getini(f"normstab_{name}")
    return str(given or DEFAULTS.get(name, ""))


class StabilityFixture:
    """`assert_stable` and `check_stable` with the test's settings; every result goes into pytest's reports."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        marker = request.node.get_closest_marker("normstab")
        unknown = set(marker.kwargs) - set(SETTINGS) if marker else set()
        if unknown or (marker and marker.args):
            raise pytest.UsageError(f"the normstab marker takes keywords {', '.join(SETTINGS)}; found {marker}")
        self.settings: dict[str, Any] = {name: _setting(request.config, name) for name in DEFAULTS}
        self.settings.update(marker.kwargs if marker else {})
        self._node = request.node

    def check(self, module: Any, x: Any, **overrides: Any) -> Stability:
        """Return how `module(x)` differs from itself in the wide precision, and note it in the report."""
        from normstab.testing.assertions import check_stable

        found = check_stable(module, x, **{**self.settings, **overrides})
        worst = found.worst
        noted = {
            "precision": str(found.precision),
            "against": str(found.against),
            "passed": found.passed,
            "worst": worst.name,
            "error": worst.error,
            "allowed": worst.tolerance.atol,
            "ulps": worst.ulps,
            "culprit": "" if found.passed else found.culprit,
        }
        self._node.user_properties.append((PROPERTY, json.dumps(noted)))
        return found

    def assert_stable(self, module: Any, x: Any, **overrides: Any) -> None:
        """Fail unless `module(x)` is close to itself in the wide precision."""
        __tracebackhide__ = True
        found = self.check(module, x, **overrides)
        if not found.passed:
            raise AssertionError(str(found))


@pytest.fixture
def stability(request: pytest.FixtureRequest) -> StabilityFixture:
    """Compare a module in a number format with itself in a wide one: `stability.assert_stable(module, x)`."""
    return StabilityFixture(request)


class _Collector:
    """Gathers what tests noted, for the terminal summary and the report directory."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.rows: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for name, text in report.user_properties:
                if name == PROPERTY:
                    self.rows.append({"test": report.nodeid, **json.loads(str(text))})

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows:
            return
        terminalreporter.section("normstab: stability")
        for row in self.rows:
            verdict = "stable" if row["passed"] else "NOT STABLE"
            terminalreporter.line(
                f"{verdict:<10}  {row['precision']}  {row['test']}: {row['worst']} off by {row['error']:.3g}, "
                f"{row['ulps']:.3g} ulps  {row['culprit']}".rstrip()
            )

    def pytest_sessionfinish(self) -> None:
        target = _setting(self.config, "report")
        if target and self.rows:
            directory = Path(target)
            directory.mkdir(parents=True, exist_ok=True)
            rows = sorted(self.rows, key=lambda row: str(row["test"]))
            (directory / "stability.json").write_text(json.dumps(rows, indent=2) + "\n")
            (directory / "stability.md").write_text(_markdown(rows))


def _markdown(rows: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    from tabulate import tabulate

    cells = [
        [
            "stable" if row["passed"] else "**not stable**",
            row["test"],
            f"`{row['precision']}`",
            row["worst"],
            f"{row['error']:.3g}",
            f"{row['ulps']:.3g}",
            row["culprit"],
        ]
        for row in rows
    ]
    headers = ["verdict", "test", "precision", "worst tensor", "error", "ulps", "where"]
    return "# Stability\n\n" + str(tabulate(cells, headers, tablefmt="github")) + "\n"
