"""Compiled kernels are cached on disk where that is possible, never wrongly, and never at the price of an error."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from numba.core.caching import CacheImpl, IndexDataCacheFile

from normstab import FORMATS, Arithmetic, Key, Ledger
from normstab.numerics.kernels.cpu import compile as compiled
from normstab.numerics.kernels.cpu.cpu_round import nearest32
from normstab.numerics.kernels.cpu.sums.dot_tiles import dot_tiles
from normstab.numerics.kernels.cpu.sums.sum_tiles import sum_tiles
from normstab.numerics.kernels.cpu.vector.lane_operations import store_addresses
from normstab.numerics.kernels.format_table import plan
from normstab.numerics.kernels.shortcut_table import LANE32
from normstab.numerics.precision import Rounding


def test_a_kernel_compiles_where_no_directory_is_writable(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    nearest = compiled.kernel(nearest32.py_func)
    assert rounds_by(nearest)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(monkeypatch):
    def refuse(*arguments):
        raise PermissionError("read-only")

    monkeypatch.setattr(IndexDataCacheFile, "save", refuse)
    monkeypatch.setattr(IndexDataCacheFile, "load", refuse)
    nearest = compiled.kernel(nearest32.py_func)
    assert rounds_by(nearest)


def rounds_by(nearest):
    """Whether a freshly compiled `nearest` rounds 0.1 to fp16."""
    x = np.full(3, 0.1, np.float32)
    nearest(x.ctypes.data, x.ctypes.data, 3, plan(FORMATS["fp16"], Rounding(), LANE32))
    return x.tolist() == [float(np.float16(0.1))] * 3


@pytest.mark.parametrize("kernel", [nearest32, store_addresses], ids=["cast", "vectors"])
@pytest.mark.parametrize(
    "name", ["bits.py", "nearest.py", "rounding_code.py", "vectors.py", "lanes.py", "lane_moves.py"]
)
def test_a_change_in_what_a_kernel_is_made_of_outdates_it(kernel, name, monkeypatch):
    before = compiled._digest_of_sources(kernel.py_func)
    read = Path.read_bytes
    changed = lambda path: read(path) + (b"#" if path.name == name else b"")  # noqa: E731
    monkeypatch.setattr(Path, "read_bytes", changed)
    compiled.source_of.cache_clear()
    is_made_of_it = (kernel is nearest32) == (name == "bits.py")
    assert (compiled._digest_of_sources(kernel.py_func) != before) == is_made_of_it
    monkeypatch.undo()
    compiled.source_of.cache_clear()
    assert compiled._digest_of_sources(kernel.py_func) == before


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "text": lambda path: path.write_text("not compiled code"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"x": 1})),
    "a pickle of another kind, well hashed": lambda path: path.write_bytes(hashed(pickle.dumps(["other"]))),
    "no pickle, well hashed": lambda path: path.write_bytes(hashed(b"\x80\x05 torn")),
    "a folder": lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


def hashed(content):
    return hashlib.sha256(content).digest() + content


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The one file of a kernel that was compiled and cached."""
    folder = tmp_path_factory.mktemp("cached")
    assert rounds_by(cached_in(folder))
    (file,) = folder.glob("*.nbc")
    return file


def cached_in(folder):
    nearest = compiled.kernel(nearest32.py_func)
    nearest._cache._cache_file._cache_path = str(folder)
    return nearest


def test_a_kernel_that_is_cached_is_not_compiled_again(cached):
    nearest = cached_in(cached.parent)
    assert rounds_by(nearest)
    assert sum(nearest.stats.cache_hits.values()) == 1


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_file_is_compiled_again_and_replaced(how, cached, tmp_path):
    whole = cached.read_bytes()
    damaged = tmp_path / cached.name
    damaged.write_bytes(whole)
    DAMAGE[how](damaged)
    nearest = cached_in(tmp_path)
    assert rounds_by(nearest)
    assert not nearest.stats.cache_hits
    assert [path.name for path in tmp_path.iterdir()] == [cached.name]
    again = cached_in(tmp_path)
    assert rounds_by(again)
    assert sum(again.stats.cache_hits.values()) == 1


def test_kernels_of_sums_and_of_products_are_compiled_once_whatever_the_way_to_round_and_count():
    x = torch.ones(64, 64)
    for precision in (
        "fp16;matmul=fp16:sequential",
        "bf16/up/bf16:lanes64;matmul=bf16",
        "fp16/stochastic/fp16;matmul=fp16",
    ):
        for ledger in (None, Ledger(), Ledger(inexact=True)):
            arithmetic = Arithmetic(precision, ledger=ledger, key=Key(0))
            assert arithmetic.sum(x, 1).tolist() == [64.0] * 64
            assert arithmetic.matmul(x, x).flatten().tolist() == [64.0] * 64**2
    assert len(sum_tiles.signatures) == len(dot_tiles.signatures) == 1
