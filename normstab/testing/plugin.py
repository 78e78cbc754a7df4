"""The pytest plugin: a `stability` fixture, a marker with its settings, a baseline, and what was found in the reports.

What `assert_stable` finds is noted whether the fixture calls it or the test does.
torch is imported when a test first uses the fixture, never when pytest starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from normstab.errors import NormstabError
from normstab.testing.runner.baseline import Baseline, key_of, read_baseline, write_baseline
from normstab.testing.runner.listeners import LISTENER

if TYPE_CHECKING:
    from normstab.testing.assertions import Stability

__all__ = []

PROPERTY = "normstab"
SETTINGS = ("precision", "against", "rtol", "atol", "grad", "seed", "rules", "recipe")
DEFAULTS = {"precision": "fp16", "against": "fp64"}
BASELINE = pytest.StashKey[Baseline]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options `--normstab-*` and the ini keys `normstab_*`."""
    group = parser.getgroup("normstab", "numerical stability")
    group.addoption("--normstab-precision", metavar="SPEC", help="precision of the stability fixture, such as bf16")
    group.addoption("--normstab-against", metavar="SPEC", help="the wide precision it compares with, such as fp64")
    group.addoption("--normstab-report", metavar="DIR", help="write what was found to DIR")
    group.addoption(
        "--normstab-baseline",
        metavar="FILE",
        help="compare with what FILE recorded, and fail only what is worse; record FILE where it is not there",
    )
    parser.addini("normstab_precision", "precision of the stability fixture", default="")
    parser.addini("normstab_against", "the wide precision that it compares with", default="")
    parser.addini("normstab_report", "directory for what was found", default="")
    parser.addini("normstab_baseline", "file of the recorded errors, with which is compared", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Document the marker, and collect results where they arrive: in the controller, also under xdist."""
    config.addinivalue_line("markers", f"normstab({', '.join(SETTINGS)}): settings of the stability fixture")
    path = _setting(config, "baseline")
    try:
        config.stash[BASELINE] = read_baseline(Path(path)) if path and Path(path).exists() else Baseline({})
    except NormstabError as error:
        raise pytest.UsageError(str(error)) from error
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Collector(config), "normstab-collector")


def _setting(config: pytest.Config, name: str) -> str:
    """Return an option, else its ini key, else the default."""
    given = config.getoption(f"normstab_{name}") or config.getini(f"normstab_{name}")
    return str(given or DEFAULTS.get(name, ""))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Listen to what `assert_stable` finds while the test runs."""
    token = LISTENER.set(_Notes(item, item.config.stash[BASELINE]))
    try:
        yield
    finally:
        LISTENER.reset(token)


class _Notes:
    """Listens for one test: every result goes into pytest's reports, and is judged beside the baseline."""

    def __init__(self, item: pytest.Item, baseline: Baseline) -> None:
        self._item = item
        self._baseline = baseline
        self._heard = 0

    def hear(self, found: Stability) -> None:
        """Note the result."""
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
        self._item.user_properties.append((PROPERTY, json.dumps(noted)))
        self._heard += 1

    def complaint(self, found: Stability) -> str | None:
        """Return why the result fails, by itself or beside the baseline; None where it does not."""
        key = key_of(self._item.nodeid, self._heard - 1)
        return self._baseline.complaint(key, passed=found.passed, error=found.worst.error, text=str(found))


class StabilityFixture:
    """`assert_stable` and `check_stable` with the test's settings."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        marker = request.node.get_closest_marker("normstab")
        unknown = set(marker.kwargs) - set(SETTINGS) if marker else set()
        if unknown or (marker and marker.args):
            raise pytest.UsageError(f"the normstab marker takes keywords {', '.join(SETTINGS)}; found {marker}")
        self.settings: dict[str, Any] = {name: _setting(request.config, name) for name in DEFAULTS}
        self.settings = merged(self.settings, marker.kwargs if marker else {})

    def check(self, module: Any, x: Any, **overrides: Any) -> Stability:
        """Return how `module(x)` differs from itself in the wide precision."""
        from normstab.testing.assertions import check_stable

        return check_stable(module, x, **merged(self.settings, overrides))

    def assert_stable(self, module: Any, x: Any, **overrides: Any) -> None:
        """Fail unless `module(x)` is close to itself in the wide precision."""
        __tracebackhide__ = True
        from normstab.testing.assertions import assert_stable

        assert_stable(module, x, **merged(self.settings, overrides))


def merged(settings: Mapping[str, Any], nearer: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those said nearer to the test; a recipe and a precision take each other's place."""
    others = {"precision": "recipe", "recipe": "precision"}
    dropped = {others[name] for name in nearer if name in others} - nearer.keys()
    return {**{name: value for name, value in settings.items() if name not in dropped}, **nearer}


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
        baseline = _setting(self.config, "baseline")
        if baseline and self.rows and not Path(baseline).exists():
            write_baseline(Path(baseline), self.rows)
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
