"""Every kind of file x every kind of damage: the right result, told, or an error that names the file."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.damage_table import CASES, DAMAGES, ERROR, OTHER, RIGHT, SKIPPED, TOLD, Whole, made, outcome

OFTEN = ("gone", "cut off", "one bit", "another encoding", "a folder", "a pipe")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Return what makes a case once."""
    return functools.cache(lambda name: made(CASES[name], tmp_path_factory.mktemp("damaged") / "whole"))


def check(whole: Whole, how: str) -> None:
    found = outcome(whole, DAMAGES[how], Path(whole.folder).parent / "act")
    assert found in (RIGHT, TOLD, ERROR, OTHER), found


@pytest.mark.parametrize("how", OFTEN)
@pytest.mark.parametrize("name", CASES)
def test_no_damage_is_silent_or_a_traceback(name: str, how: str, whole: object) -> None:
    check(whole(name), how)  # type: ignore[operator]


@pytest.mark.nightly
@pytest.mark.parametrize("how", [how for how in DAMAGES if how not in {*OFTEN, *SKIPPED}])
@pytest.mark.parametrize("name", CASES)
def test_no_rarer_damage_is_silent_or_a_traceback(name: str, how: str, whole: object) -> None:
    check(whole(name), how)  # type: ignore[operator]
