"""Scenario files that people and strangers get wrong: every one is accepted or refused in words, and soon."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from normstab.__main__ import main
from normstab.experiment.scenario.reader import scenario_paths

SCENARIOS = [YAML(typ="safe").load(path.read_text(encoding="utf-8")) for path in scenario_paths().values()]
JUNK: list[Any] = [5, -1, 0, 1.5, True, None, "", "x", "~", "$x$", [], {}, [5], [[1]], {"a": 1}, {"norm": 5}, "fp16",
        "native", 10**30, [None], [{}], {"where": 5}, {"norm": ["l2"]}, "a" * 300, [1] * 2000, "\x1b[31m", {"from": 5},
        "re:(", -0.0, "1pp", ["seed"], {"seed": []}, 1e308]  # fmt: skip
FILES = 60
"""More of them were tried by hand; a file takes about a tenth of a second."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within `value`."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def spoiled(document: Any, choices: random.Random) -> Any:
    """Return the document with one to three values taken away, swapped for others, or junk."""
    document = copy.deepcopy(document)
    for _ in range(choices.choice((1, 1, 1, 2, 3))):
        *above, last = choices.choice(list(places(document)))
        parent = document
        for key in above:
            parent = parent[key]
        what = choices.random()
        if what < 0.15:
            del parent[last]
        elif what < 0.3 and isinstance(parent, dict):
            parent[choices.choice(("include", "exclude", "grid", "where", "norm", "sweep", "expect", ""))] = (
                choices.choice(JUNK)
            )
        else:
            parent[last] = copy.deepcopy(choices.choice(JUNK))
        if not document:
            break
    return document


@pytest.mark.parametrize("seed", range(4))
def test_a_spoiled_scenario_is_valid_or_bad_input(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = random.Random(seed)
    path = tmp_path / "spoiled.yaml"
    for _ in range(FILES // 4):
        path.write_text(json.dumps(spoiled(choices.choice(SCENARIOS), choices)), encoding="utf-8")
        code = main(["validate", str(path)])
        said = capsys.readouterr().err
        assert code in (0, 2), f"{path.read_text()}\n{said}"
        assert code == 0 or said.strip()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("include: 5", "include"),
        ("exclude: 5", "exclude"),
        ("grid: 5", "grid"),
        ("expect: 5", "expect"),
        ("sweep: 5", "sweep"),
        ("variants: 5", "variants"),
        ("profiles: [5]", "profiles"),
        ("claims: {a: 1}", "claims"),
    ],
)
def test_a_section_of_another_kind_is_told(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"version: 1\nname: x\ndataset: {{name: synthetic}}\nmodel: {{name: mlp}}\n{line}\n")
    assert main(["validate", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_excludes_that_explode_are_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds, scales = ",".join(map(str, range(100))), ",".join(str(n + 1) for n in range(99))
    lines = ["version: 1", "name: x", "dataset: {name: synthetic}", "model: {name: mlp}"]
    lines += [f"grid: {{seed: [{seeds}], input_scale: [{scales}]}}", "exclude:"]
    lines += [f"- {{seed: {n % 100}, input_scale: {n % 99 + 1}}}" for n in range(800)]
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(lines))
    started_s = time.process_time()
    assert main(["validate", str(path)]) == 2
    assert time.process_time() - started_s < 5.0  # a fifth of it on an idle machine; minutes if they were compared
    assert "comparisons of cells with excluded values; at most 2,000,000 are allowed" in capsys.readouterr().err
