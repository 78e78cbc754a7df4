"""What the documentation shows is what happens: every Python block runs, every command exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from normstab.cli import app
from normstab.report.glossary import as_list
from tests.entry_points import with_entry_points

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "normstab").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, *languages):
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands():
    registered = [command.name or command.callback.__name__ for command in app.registered_commands]
    return {name.replace("_", "-") for name in registered}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path):
    script = "\n".join(blocks(page, "python"))
    environment = with_entry_points(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_on_reports_says_what_their_words_mean_in_the_same_words():
    assert as_list() in (ROOT / "normstab/docs/reading-a-report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_a_page_shows_exists(page):
    shown = re.findall(r"\bnormstab ([a-z]+)\b(?!\.)", "\n".join(blocks(page, "", "sh", "console")))
    assert set(shown) <= commands()


def test_the_readme_has_every_command():
    shown = re.findall(r"^normstab ([a-z]+)", "\n".join(blocks(ROOT / "README.md", "")), re.MULTILINE)
    assert set(shown) == commands()


def test_ci_runs_the_readmes_test_command():
    install, test = (line.strip() for line in blocks(ROOT / "README.md", "sh"))
    assert [step.split(".venv/bin/")[-1] for step in test.split(" && ")] == [
        "python3 -m venv .venv",
        "pip install tox",
        "tox run",
    ]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python3 -m venv" in ci and 'pip" install --quiet tox' in ci and 'tox" run' in ci
    assert "-c constraints.txt" in install
    scenario = re.search(r"scenarios/\S+\.yaml", install)[0]
    assert (ROOT / scenario).exists()
