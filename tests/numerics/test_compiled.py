"""The cache of compiled kernels, and kernels compiled for another processor than this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import normstab as ns
from normstab.numerics.kernels.cpu.compile import _FilePerKey

ON_A_PLAIN_PROCESSOR = """
import torch
import normstab as ns
from normstab.numerics.first_calls import FIRST_CALLS

FIRST_CALLS.end()
x = ns.cast(torch.randn(70, 130, generator=torch.Generator().manual_seed(0)) * 300, "fp16")
arithmetic = ns.Arithmetic("fp16/nearest/fp16:blocked4")
print(arithmetic.sum(x, 1).double().sum().item(), arithmetic.matmul(x.T, x).double().sum().item())
"""

IN_A_LAYER = """
import torch
from numba.core import event
import normstab as ns
from normstab.numerics.first_calls import FIRST_CALLS

FIRST_CALLS.end()
counted = event.RecordingListener()
with event.install_listener("numba:compile", counted):
    layer = torch.nn.BatchNorm2d(3)
    with ns.simulate(layer, "fp16"):
        layer(torch.ones(2, 3, 2, 2))
print(ns.__file__, len(counted.buffer))
"""


def test_two_processes_that_write_at_once_do_not_mix_their_code(tmp_path):
    one, other = (_FilePerKey(str(tmp_path), "module.function-1.py311", "the same source") for _ in range(2))
    assert one.load("float32") is None and other.load("float64") is None
    one.save("float32", b"code for float32")
    other.save("float64", b"code for float64")  # numba's index would give it the first file
    for cache in (one, other):
        assert cache.load("float32") == b"code for float32"
        assert cache.load("float64") == b"code for float64"


def test_a_changed_source_is_compiled_again_and_its_old_code_deleted(tmp_path):
    old, new = (_FilePerKey(str(tmp_path), "module.function-1.py311", source) for source in ("old", "new"))
    neighbour = _FilePerKey(str(tmp_path), "module.function_too-9.py311", "old")
    old.save("float32", b"old code")
    neighbour.save("float32", b"code of another function")
    assert new.load("float32") is None
    new.save("float64", b"new code")
    assert old.load("float32") is None
    assert new.load("float64") == b"new code" and neighbour.load("float32") == b"code of another function"


def test_in_a_shared_folder_no_source_deletes_the_code_of_another(tmp_path):
    folder = tmp_path / "not" / "there"
    old, new = (
        _FilePerKey(str(folder), "module.function-1.py311", source, is_shared=True) for source in ("old", "new")
    )
    old.save("float32", b"old code")
    new.save("float32", b"new code")
    assert old.load("float32") == b"old code" and new.load("float32") == b"new code"


@pytest.mark.nightly  # compiles a layer anew
def test_another_installation_of_the_same_sources_finds_the_code_in_a_shared_folder(tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(Path(ns.__file__).parent, copy / "normstab", ignore=shutil.ignore_patterns("__pycache__"))
    shared = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    compiled = []
    for place in (Path(ns.__file__).parents[1], copy, Path(ns.__file__).parents[1]):
        environment = os.environ | shared | {"PYTHONPATH": str(place)}
        command = [sys.executable, "-c", IN_A_LAYER]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert run.returncode == 0, run.stderr[-2000:]
        where, count = run.stdout.split()
        assert Path(where) == place / "normstab" / "__init__.py"
        compiled.append(int(count))
    assert compiled[0] > 0 and compiled[1:] == [0, 0]


@pytest.mark.nightly  # compiles everything anew
def test_a_processor_without_half_conversion_gives_the_same_bits(tmp_path):
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ON_A_PLAIN_PROCESSOR]
    there = subprocess.run(command, capture_output=True, text=True, env=os.environ | plain)
    assert there.returncode == 0, there.stderr[-2000:]
    here = subprocess.run(command, capture_output=True, text=True)
    assert there.stdout == here.stdout != ""
