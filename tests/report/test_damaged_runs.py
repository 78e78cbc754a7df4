"""Every file of a run's directory, damaged in every way: the rest is judged, a line says what was not, no traceback.

The story is synthetic, so that nothing is trained. What a damage leads to is one of: the same report, a line that
names the file and an exit code of 2 or 3, or an error that names the file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from normstab.__main__ import main
from tests.assess.synthetic import story
from tests.report.made import made_scenario, write_runs
from tests.report.test_evidence import ONE


def text(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda path: path.write_text(change(path.read_text()))


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: (path.unlink(), make(path))


def field(name: str, value: object) -> Callable[[Path], object]:
    """Return what gives the first line's object another value for `name`, or adds it."""

    def damage(path: Path) -> None:
        head, mark, rest = path.read_text().partition("\n") if path.suffix == ".jsonl" else (path.read_text(), "", "")
        path.write_text(json.dumps({**json.loads(head), name: value}) + mark + rest)

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": text(lambda content: ""),
    "torn": text(lambda content: content[: len(content) // 2]),
    "null": text(lambda content: "null\n"),
    "a list": text(lambda content: "[]\n"),
    "a number": text(lambda content: "1" * 10_000 + "\n"),
    "deep": text(lambda content: "[" * 100_000),
    "deep objects": text(lambda content: '{"a":' * 100_000),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "NUL bytes": lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
    "a folder": replaced(lambda path: path.mkdir()),
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a dangling link": replaced(lambda path: path.symlink_to("nowhere")),
    "a circle of links": replaced(lambda path: path.symlink_to(path.name)),
    "version 2": field("version", 2),
    "version null": field("version", None),
    "negative steps": field("steps", -1),
    "an inf of steps": field("steps", float("inf")),
    "epochs that are none": field("epochs", [{"accuracy": 7.0, "test_loss": 0.0, "train_loss": 0.0}]),
    "a cell that is none": field("cell", {"coordinates": {"norm": [1]}, "is_reference": "maybe"}),
    "another id": field("id", "../../../etc/passwd"),
    "a document that is none": field("document", {"grid": 5, "include": 5, "expect": 5, "version": 1}),
    "a document of junk": field("document", {"version": 1, "name": "made", "grid": {"norm": {"a": 1}}}),
    "written that is none": field("written", 5),
    "profiles that are none": field("profiles", [5]),
    "overrides that are none": field("overrides", 5),
    "a path that is none": field("path", ["x"]),
    "runs that are none": field("runs", 5),
    "a loss that is text": field("loss", "low"),
}
SMALL = ONE.partition("  - metric: accuracy")[0] + ONE[ONE.index("profiles:") :]
SMALL = SMALL.replace("norm: [l2, l1]", "norm: [l2]").replace("seed: [0, 1]", "seed: [0]")
STORY = {"seeds": (0,), "norms": ("l2",), "scales": (256.0,)}
FILES = ("record.json", "reference's record.json", "steps.jsonl", "scenario.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return write_runs(folder / "out", story(**STORY), made_scenario(folder, SMALL))


def place_of(name: str, directory: Path) -> Path:
    """Return the path of one of FILES: of the last cell, or of its reference."""
    if name == "scenario.json":
        return directory / name
    runs = [run for run in story(**STORY) if run.record.is_reference is (name.startswith("reference"))]
    return directory / "records" / runs[-1].id / name.split()[-1]


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_told_and_the_rest_is_judged(
    name: str, how: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "out"
    shutil.copytree(whole, directory)
    path = place_of(name, directory)
    before = path.read_bytes()
    DAMAGE[how](path)
    is_unchanged = path.is_file() and not path.is_symlink() and json_of(path.read_bytes()) == json_of(before)
    code = main(["report", str(directory), "--format", "json"])
    said = capsys.readouterr()
    assert "internal error" not in said.err and "Traceback" not in said.err
    if is_unchanged or (code == 0 and how in HARMLESS):
        return
    assert code in (2, 3), said.err
    assert path.name in said.err or "no record: " in said.err
    assert max(map(len, said.err.splitlines())) < 3000
    if name != "scenario.json":
        assert len(json.loads(said.out)["cells"]) == len(story(**STORY)) - 1


# Fields that a file does not have, and those of scenario.json that tell people where it came from.
HARMLESS = ("a document that is none", "a document of junk", "written that is none", "profiles that are none",
            "overrides that are none", "a path that is none", "runs that are none", "a loss that is text",
            "negative steps", "an inf of steps", "epochs that are none", "a cell that is none",
            "another id")  # fmt: skip


def json_of(content: bytes) -> object:
    try:
        return [json.loads(line) for line in content.splitlines()]
    except (ValueError, RecursionError):
        return content


@pytest.mark.parametrize(
    "how", ["torn", "a pipe", "a document of junk", "written that is none", "overrides that are none"]
)
def test_a_damaged_sibling_stops_no_joint_page(
    how: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out", "sibling"):
        shutil.copytree(whole, tmp_path / name)
    DAMAGE[how](tmp_path / "sibling" / "scenario.json")
    code = main(["report", str(tmp_path / "out")])
    assert code in (0, 1), capsys.readouterr().err
    assert (tmp_path / "made_page" / "report.md").exists()
