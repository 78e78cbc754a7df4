"""The checks of the table of a device, on the kernels of CUDA, in Triton's interpreter and a process of its own."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("numba")

from tests.benchmarks.device_rows import TINY
from tests.benchmarks.device_table import SECTIONS, differing
from tests.norms.test_cuda_walks import IS_INTERPRETED
from tests.numerics.test_cuda_sums import run_interpreted
from tests.simulation.test_host_waits import on_device


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
def test_the_kernels_of_cuda_pass_the_tables_checks_in_tritons_interpreter() -> None:
    run_interpreted(__file__, "as_on_a_device")


@pytest.mark.skipif(not IS_INTERPRETED, reason="runs in Triton's interpreter")
@pytest.mark.parametrize("section", ["casts", "operations", "scaled", "sums"])
def test_checked_as_on_a_device(section: str) -> None:
    for row in SECTIONS[section](TINY):
        if row.is_launch_bound:
            continue
        for bits in row.make("cpu").bits.values():
            there = bits("cpu")
            with on_device(), np.errstate(all="ignore"):
                here = bits("cpu")
            assert sum(differing(a, b) for a, b in zip(here, there, strict=True)) == 0
