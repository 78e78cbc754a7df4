"""torch's own OpenMP threads, to run kernels that are not torch's.

torch's threads go on spinning for milliseconds after each of its parallel operations. Threads of our own would
compete with them for the cores, and have to be woken besides.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normstab.numerics.kernels.process import is_forked

__all__ = ["flushes_subnormals", "run_on_team", "team"]

# What compilers call for a parallel region. Source: libgomp's interface, which LLVM's and Intel's runtimes have too.
ENTRY = "GOMP_parallel"
RUNTIME = re.compile(r"lib(gomp|omp|iomp5)\b[^/]*\.so[^/]*$")
Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
LEAST_NORMAL = np.float32(2.0**-126)


def team() -> Any:
    """Return the entry of the OpenMP runtime that torch runs on, or None where that cannot be told.

    None too in a forked child: where its parent used the runtime, that waits for threads that are not there.
    """
    return None if is_forked() else _entry()


@lru_cache(maxsize=1)
def _entry() -> Any:
    """Find the runtime among the libraries of this process: torch's own copy, or the only one there is."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    files = {fields[5] for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6}
    runtimes = {file for file in files if RUNTIME.search(file)}
    place = Path(torch.__file__).parent
    chosen = {file for file in runtimes if place in Path(file).parents} or runtimes
    if len(chosen) != 1:
        return None
    try:
        entry = getattr(ctypes.CDLL(chosen.pop()), ENTRY)
    except (OSError, AttributeError):
        return None
    entry.argtypes, entry.restype = (Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return entry


def run_on_team(entry: Any, work: Callable[[int], None], n: int) -> None:
    """Call work(0) .. work(n - 1) on the threads of the runtime; return when all are done.

    The first error is raised then. A thread takes one number after another, be there fewer threads or more; torch
    always asks for all of its threads too, for the runtime ends those that a smaller team leaves out.
    """
    numbers, caller = itertools.count(), threading.get_ident()
    errors: list[BaseException] = []
    left: list[int] = []

    def region(_: int) -> None:
        # Its threads may flush subnormals where the caller does not: theirs is the mode of when they were born.
        thread = threading.get_ident()
        flushes = thread != caller and flushes_subnormals()
        try:
            if flushes:
                torch.set_flush_denormal(False)
            while (i := next(numbers)) < n:
                work(i)
        except BaseException as error:
            errors.append(error)
        finally:
            if flushes:
                torch.set_flush_denormal(True)
        left.append(thread)

    entry(Region(region), None, torch.get_num_threads(), 0)
    if errors:
        raise errors[0]
    if caller not in left:
        # Ctrl-C came before the first or behind the last of the caller's work, where ctypes can do no more than say so.
        raise KeyboardInterrupt


def flushes_subnormals() -> bool:
    """Whether this thread's float32 operations flush subnormals to zero (torch.set_flush_denormal)."""
    return bool(LEAST_NORMAL * np.float32(0.5) == 0)
