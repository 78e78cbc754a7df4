"""Arguments that people and scripts get wrong: `check`, `compare` and `report` answer with words, never a traceback."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from normstab.__main__ import main
from tests.assess.synthetic import story
from tests.report.made import made_scenario, write_runs
from tests.report.test_damaged_runs import SMALL, STORY

JUNK = ["", " ", "-", "--", "=", ":", "x" * 5000, "\x1b[31m", "\ud800", "$x$", "*", "~nosuchuser", "/dev/null",
        "/dev/zero", "/proc/self/mem", "..", ".", "\n", "1e400", "-1", "0", "nan", "9" * 400, "../../etc/passwd",
        "a:b:c", "%s{0}", "é"]  # fmt: skip
FACTORIES = ["torch.nn:Identity", "torch.nn:Linear", "torch.nn:nosuch", "nosuch:x", "os:getcwd", "torch.nn", ":", "os:"]
INPUTS = ["2x3", "4", "2x3:int64", "2x3:float32:0..1", "x=2x3", "0x3", "2x3:bool", "2x-3", "2x3:float32:1..0", "1" * 30,
          "2x3:nosuch", "2x3:float32:nan..inf", "99999x99999x99999", "=2", "2x3:::"]  # fmt: skip
PRECISIONS = [
    "fp16",
    "bf16",
    "half",
    "fp16;square=fp32",
    "int8",
    "fp7",
    "fp16/nearst",
    "fp16;;",
    "native",
    "e99m99",
    "@",
]
RULES = ["=fp16", "nosuch=fp32", "re:(=fp32", "op:add=fp32", "re:a{99999999999}=fp32", "_default=", "a::b::c=fp16"]
GATES = [
    "accuracy:-1pp",
    "accuracy:5%",
    "loss:1",
    "accuracy:0",
    "accuracy:1e400",
    "nosuch:1",
    "accuracy",
    ":",
    "accuracy:pp",
]


OPTIONS = {
    "--input": INPUTS,
    "--precision": PRECISIONS,
    "--rules": RULES,
    "--norm": ["l1", "l99", "top3"],
    "--loss": ["sum", "cross-entropy", "x"],
    "--optimizer": ["adam", "x"],
    "--lr": ["0", "nan", "x"],
    "--steps": ["1", "-1", "x"],
    "--seed": ["7", "-1", "1e3"],
    "--allow": ["DEGRADED", "STABLE"],
    "--format": ["json", "junit", "x"],
    "--nosuch": ["1"],
}


def of_check(chance: random.Random, places: list[str]) -> list[str]:
    """Return arguments of `check`."""
    arguments = ["check", chance.choice((*FACTORIES, *FACTORIES, *JUNK))]
    for option, values in OPTIONS.items():
        if chance.random() < (0.8 if option in ("--input", "--precision") else 0.12):
            arguments += [option, chance.choice(JUNK if chance.random() < 0.1 else values)]
    return arguments


def of_compare(chance: random.Random, places: list[str]) -> list[str]:
    """Return arguments of `compare`."""
    arguments = ["compare", *(chance.choice((*places, *places, *JUNK)) for _ in range(chance.choice((1, 2, 2, 2, 3))))]
    for _ in range(chance.randrange(3)):
        arguments += ["--fail-on", chance.choice((*GATES, *JUNK))]
    return arguments + ["--json"] * chance.randrange(2)


def of_report(chance: random.Random, places: list[str]) -> list[str]:
    """Return arguments of `report`."""
    arguments = ["report", *(chance.choice((*places, *places, *JUNK)) for _ in range(chance.choice((0, 1, 1, 2))))]
    if chance.random() < 0.8:
        arguments += ["--format", chance.choice(("json", "junit", "json", "junit", "html", "md", "x", *JUNK[:6]))]
    return arguments + ["--strict"] * chance.randrange(2) + ["--wide"] * chance.randrange(2)


COMMANDS: dict[str, Callable[[random.Random, list[str]], list[str]]] = {
    "check": of_check,
    "compare": of_compare,
    "report": of_report,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder / "a", story(**STORY), made_scenario(folder, SMALL))
    shutil.copytree(folder / "a", folder / "b")
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    return folder


def tried(command: str, count: int, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Give the command so many lists of arguments."""
    places = [str(runs / name) for name in ("a", "b", "empty", "file", "nosuch")]
    for seed in range(count):
        arguments = COMMANDS[command](random.Random(f"{command}{seed}"), places)
        code = main(arguments)
        said = capsys.readouterr().err
        assert code in (0, 1, 2, 3), f"{arguments}\n{said}"
        assert "Traceback" not in said, arguments
        assert code != 2 or said.strip(), arguments


@pytest.mark.parametrize("command", COMMANDS)
def test_no_arguments_are_an_internal_error(command: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tried(command, 15, runs, capsys)


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_no_arguments_of_many_are_an_internal_error(
    command: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried(command, 170, runs, capsys)
