"""Compiled kernels are cached on disk where that is possible, never wrongly, and never at the price of an error."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from numba.core.caching import CacheImpl, IndexDataCacheFile

from normstab import FORMATS
from normstab.numerics.kernels.cpu import compile as compiled
from normstab.numerics.kernels.cpu.cpu_round import nearest32
from normstab.numerics.kernels.format_table import LANE32, plan
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


def test_a_change_in_a_device_function_outdates_the_kernels_that_use_it(monkeypatch):
    before = compiled._digest_of_sources(nearest32.py_func)
    read = Path.read_bytes
    changed = lambda path: read(path) + (b"#" if path.name == "bits.py" else b"")  # noqa: E731
    monkeypatch.setattr(Path, "read_bytes", changed)
    assert compiled._digest_of_sources(nearest32.py_func) != before
