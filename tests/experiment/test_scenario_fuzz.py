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


HEAD = "version: 1\nname: x\ndataset: {name: synthetic}\nmodel: {name: mlp}\n"
GRID = f"grid: {{seed: {list(range(50))}, input_scale: {list(range(1, 51))}}}\n"
SEEDS = list(range(999))
FP16 = "numerics: {precision: fp16}\n"


def lines(count: int, line: str) -> str:
    """Return `count` lines, N replaced by their numbers and M by the next."""
    return "".join(line.replace("N", str(n)).replace("M", str(n + 1)) + "\n" for n in range(count))


CHAIN = " vN: {train.norm_record: {from: {variant: vM}}}"
HOSTILE = {
    "as many cells as there may be": (HEAD + FP16 + GRID, 0, "valid, 5000 cells"),
    "many excludes": (HEAD + GRID + "exclude:\n" + lines(50, "- {seed: N, input_scale: M}"), 0, "valid, 2450 cells"),
    "more cells than are made for a look, with their references": (
        HEAD + FP16 + GRID.replace("[1,", "[99, 1,"), 0, "valid, 5100 cells"
    ),
    "a million cells": (
        HEAD + f"grid: {{precision: [fp16, bf16], seed: {list(range(500))}, input_scale: {list(range(1, 501))}, "
        "train.batch: [16, 64]}", 0, "valid, 1500000 cells",
    ),
    "a long chain of recordings": (
        HEAD + "variants:\n" + lines(500, CHAIN) + " v500: {}\ngrid: {variant: [v0]}", 2, "more than 32 cells"
    ),
    "many chains of recordings": (
        HEAD + FP16 + "variants:\n" + lines(30, CHAIN) + f" v30: {{}}\ngrid: {{variant: [v0], seed: {SEEDS}}}",
        2,
        "more than 3000 settings",
    ),
    "variants times variants": (
        HEAD + "variants:\n" + lines(900, " vN: {train.epochs: M}") + "grid: {variant: ["
        + ",".join(f"v{n}" for n in range(900)) + "]}", 2, "characters of settings",
    ),
    "expectations": (
        HEAD + GRID + "expect:\n" + lines(50, "- {where: {seed: N, input_scale: M}, verdict: STABLE}") * 10, 0, "valid",
    ),
    "unknown fields": (HEAD + lines(1900, "kN: 1"), 2, "60 problems or more"),
    "unknown values of selectors": (
        HEAD + GRID + f"exclude:\n- seed: {list(range(50, 2000))}", 2, "no cell has seed 50"
    ),
    "one key again and again": (HEAD + "grid: {" + "a: 1," * 3000 + "}", 2, "and 2959 more"),
    "many values": (HEAD + "grid: {seed: [" + "1," * 16_000 + "]}", 2, "more than 4000 values"),
    "a long name": (HEAD + "grid: {norm: [" + "l" * 30_000 + "]}", 2, "unknown norm"),
    "a long order": (HEAD + f"numerics: {{precision: fp16/nearest/fp32:blocked{'9' * 9000}}}", 2, "precision"),
    "a pattern that is none": (HEAD + "numerics: {rules: {'re:a{99999999999}': bf16}}", 2, "no regular"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_no_file_takes_long(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, code, said = HOSTILE[what]
    path = tmp_path / "x.yaml"
    path.write_text(content)
    started_s = time.process_time()
    assert main(["validate", str(path)]) == code
    spent_s = time.process_time() - started_s
    assert said in capsys.readouterr().err
    assert spent_s < 3.0  # under 0.7 where nothing else runs; before, some took minutes


def test_a_profile_of_many_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(HEAD + "profiles:\n smoke:\n" + lines(900, "  numerics.rules.mN: bf16"))
    assert main(["validate", str(path), "--smoke"]) == 2
    assert "more than 200 settings" in capsys.readouterr().err
