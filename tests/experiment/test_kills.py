"""Runs killed at file operations and at random moments: the next run ends with the same bytes and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def table_of(kills: int, seed: int) -> str:
    """Return the table of so many kills, made by a process that torch has not run backward in."""
    command = [sys.executable, "-m", "tests.experiment.killing", str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_twenty_kills_lose_nothing_and_leave_nothing() -> None:
    assert "20 kills" in table_of(20, seed=1)


@pytest.mark.nightly
def test_a_kill_at_any_file_operation_loses_nothing_and_leaves_nothing() -> None:
    said = table_of(300, seed=2)
    for kind in ("torn write", "fsync", "rename of a checkpoint", "lock", "make a folder", "a random moment"):
        assert f"| {kind} |" in said
