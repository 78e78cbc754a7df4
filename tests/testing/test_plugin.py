"""The pytest plugin: fixture, marker, options, JUnit properties, summary, report, xdist."""

import json
import re
import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

SUITE = """
    import pytest, torch
    from torch import nn

    X = torch.linspace(-2, 2, 32).reshape(4, 8)

    class Square(nn.Module):
        def forward(self, x):
            return x * x

    def test_sound(stability):
        stability.assert_stable(nn.Tanh(), X)

    @pytest.mark.normstab(precision="fp16")
    def test_overflow(stability):
        stability.assert_stable(Square(), X * 1000)
"""


@pytest.fixture
def suite(pytester):
    pytester.makepyfile(SUITE)
    return lambda *arguments: pytester.runpytest_subprocess(*arguments)


def test_a_failure_names_the_site_and_the_summary_lists_both(suite):
    result = suite("--normstab-precision", "bf16")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*mul[[]forward] overflowed first*", "*normstab: stability*", "stable*bf16*test_sound*"]
    )
    result.stdout.fnmatch_lines(["NOT STABLE*fp16*test_overflow*"])


def test_results_are_junit_properties_and_a_report(suite, pytester):
    suite("--junitxml=out.xml", "--normstab-report=found", "-q")
    assert 'property name="normstab"' in (pytester.path / "out.xml").read_text()
    rows = json.loads((pytester.path / "found" / "stability.json").read_text())
    assert [row["passed"] for row in rows] == [False, True]
    assert "**not stable**" in (pytester.path / "found" / "stability.md").read_text()


DIRECT = """
    def test_direct():
        from normstab.testing import assert_stable
        assert_stable(Square(), X * 1000)

    def test_two_in_one():
        from normstab.testing import assert_stable
        assert_stable(nn.Tanh(), X)
        assert_stable(nn.Sigmoid(), X)
"""


def test_direct_calls_are_reported_and_a_failure_begins_with_format_ulps_and_site(pytester, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    pytester.makepyfile(SUITE + DIRECT)
    result = pytester.runpytest_subprocess("--normstab-report=found")
    text = result.stdout.str()
    assert len(re.findall(r"E +AssertionError: [A-Z]+ in fp16: \S.* off by .* ulps, made at \S*mul\[", text)) == 2
    assert "assertions.py" not in text and "plugin.py" not in text, "no frame of ours"
    result.stdout.fnmatch_lines(["FAILED *test_overflow - AssertionError: * in fp16: * ulps*"])
    rows = json.loads((pytester.path / "found" / "stability.json").read_text())
    tests = [row["test"].rpartition("::")[2] for row in rows]
    assert sorted(tests) == ["test_direct", "test_overflow", "test_sound", "test_two_in_one", "test_two_in_one"]


def test_a_baseline_is_recorded_then_lets_pass_what_it_knows_and_fails_what_is_worse(pytester):
    pytester.makepyfile(SUITE + DIRECT)
    run = lambda: pytester.runpytest_subprocess("--normstab-baseline=kept/baseline.json", "-q")  # noqa: E731
    run().assert_outcomes(passed=2, failed=2)
    path = pytester.path / "kept" / "baseline.json"
    recorded = json.loads(path.read_text())
    assert sum(" #2" in key for key in recorded["tests"]) == 1
    run().assert_outcomes(passed=4)
    assert json.loads(path.read_text()) == recorded, "a baseline is written once"
    for key, row in recorded["tests"].items():
        if "test_sound" in key:
            row["error"] /= 100
    path.write_text(json.dumps(recorded))
    result = run()
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*Worse than its baseline: off by *, recorded *"])


def test_a_file_that_is_no_baseline_is_a_usage_error(pytester):
    pytester.makepyfile(SUITE)
    (pytester.path / "wrong.json").write_text("{}")
    result = pytester.runpytest_subprocess("--normstab-baseline=wrong.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*wrong.json: not a baseline of version 1*"])


def test_ini_keys_set_the_defaults(suite, pytester):
    pytester.makeini("[pytest]\nnormstab_precision = bf16\nnormstab_report = from_ini")
    suite("-k", "sound").assert_outcomes(passed=1)
    rows = json.loads((pytester.path / "from_ini" / "stability.json").read_text())
    assert rows[0]["precision"].startswith("bf16/")


def test_it_works_under_xdist(suite, pytester):
    pytest.importorskip("xdist")
    result = suite("-n", "2", "--normstab-report=found")
    result.assert_outcomes(passed=1, failed=1)
    assert len(json.loads((pytester.path / "found" / "stability.json").read_text())) == 2


def test_an_unknown_setting_of_the_marker_is_an_error(pytester):
    pytester.makepyfile("""
        import pytest
        @pytest.mark.normstab(precison="fp16")
        def test_x(stability): pass
    """)
    result = pytester.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*takes keywords precision, against*"])


def test_loading_the_plugin_imports_no_torch():
    code = "import sys, normstab.testing.plugin; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
