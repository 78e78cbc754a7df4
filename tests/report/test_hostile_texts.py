"""Texts that strangers wrote, in scenarios, records and exceptions: no report, plot or terminal obeys them."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from matplotlib.figure import Figure

from normstab.__main__ import main
from normstab.assess.assessment import assess
from normstab.cli import Voice
from normstab.errors import NormstabError
from normstab.report.escaping import bounded, inert, one_line, visible
from normstab.report.markdown import render_report
from normstab.report.pictures.svg import draw
from normstab.terminal.printable import printable
from normstab.terminal.step_summary import append_summary, step_summary
from normstab.terminal.summary import summary
from tests.assess.synthetic import story
from tests.report.made import SCENARIO, made_assessment, made_scenario

EVIL = "<img src=x onerror=alert(1)> ![t](http://x) \x1b[31m $\\frac$ `<b>`\n\n# fake\n| a |"


def test_markdown_has_neither_the_html_nor_the_lines_of_a_stranger(tmp_path: Path) -> None:
    scenario = made_scenario(tmp_path, SCENARIO.replace("source: Hoffer et al. 2018", f"source: {json.dumps(EVIL)} #"))
    runs = story(seeds=(0,), scales=(256.0,), norms=("l2",))
    runs = [replace(run, record=replace(run.record, notes=(EVIL,), unrecognised={EVIL: 1})) for run in runs]
    found = assess(runs, scenario, problems=[NormstabError(EVIL)])
    for text in (render_report(found).text, step_summary([found])):
        assert "<img" not in text and "<b>" not in text and "![t]" not in text and "\x1b" not in text
    report = render_report(found).text
    assert "&lt;img src=x onerror=alert(1)>" in report
    assert not any(line.startswith("# ") for line in report.splitlines()[2:])


@pytest.mark.parametrize("name", ["$x_$", "$\\frac$", "a$b", "$$", "\\$x\\$", "$\\infty$ & <b>"])
def test_a_dollar_sign_in_a_name_is_a_dollar_sign_in_every_plot(name: str) -> None:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [1e-3, 1.0], label=name)
        axes.set_title(name)
        axes.set_xticks([0, 1], [name, "1"])
        axes.set_yscale("log")
        axes.legend()

    picture = draw(4.0, 3.0, paint)
    assert picture.count(f">{escape(name)}</text>") == 3
    assert "}$</text>" not in picture  # the powers of ten of the axis are still formulas


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, wide \u00e9 \u4e2d\ttab\nline", "plain, wide \u00e9 \u4e2d\ttab\nline"),
        ("\x1b[2J\x07", "\\u001b[2J\\u0007"),
        ("\x9b31m", "\\u009b31m"),
        ("a\rb", "a\\u000db"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_steers_a_terminal_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_markdown_that_is_harmless_stays_as_it_is() -> None:
    text = "a < b, 1<2, x -> y, [link](page.md), `code`, **bold** | &"
    assert inert(text) == text


def test_texts_are_bounded_and_say_what_is_missing() -> None:
    assert bounded("x" * 50_000_000) == "x" * 2000 + "... (49,998,000 characters more)"
    assert one_line("a\nb\r\nc") == "a b c"


def test_a_stream_of_ascii_is_given_ascii_that_is_still_json() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    found = printable(json.dumps({"k": "\u00e9\u4e2d\U0001f600"}, ensure_ascii=False), stream)
    assert found.isascii()
    assert json.loads(found) == {"k": "\u00e9\u4e2d\U0001f600"}


class Failing(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_a_reader_that_has_gone_and_people_who_do_not_listen_change_no_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Failing(OSError(28, "No space left on device")))
    monkeypatch.setattr(sys, "stdout", Failing(BrokenPipeError()))
    assert main(["list", "formats"]) == 0
    assert main(["validate", "nowhere.yaml"]) == 2
    assert main(["list", "nothing"]) == 2
    assert main(["no-such-command"]) == 2


def test_an_answer_that_finds_no_room_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Failing(OSError(28, "No space left on device")))
    with pytest.raises(NormstabError, match="stdout: cannot write: No space left"):
        Voice().give("text")
    assert main(["list", "formats"]) == 2


def test_a_summary_of_the_step_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(NormstabError, match=r"GITHUB_STEP_SUMMARY: .*: cannot write: "):
        append_summary(tmp_path / "no" / "such", [made_assessment(tmp_path)])


@pytest.mark.parametrize("path", ["~nosuchuser/x.yaml", "a" * 300 + ".yaml", "locked/x.yaml", "x.yaml/y.yaml"])
@pytest.mark.parametrize("command", ["validate", "show", "run", "report"])
def test_a_path_that_cannot_be_used_is_bad_input_with_a_sentence(
    command: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "locked").mkdir()
    (tmp_path / "x.yaml").write_text("version: 1")
    os.chmod(tmp_path / "locked", 0)
    try:
        assert main([command, path]) == 2
    finally:
        os.chmod(tmp_path / "locked", 0o755)
    assert path[:20] in capsys.readouterr().err


def test_the_terminal_is_given_no_escape_of_a_stranger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(made_assessment(tmp_path), problems=(EVIL,))
    Voice().say(summary(found))
    assert "\x1b" not in capsys.readouterr().err
