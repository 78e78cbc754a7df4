"""Kernels that draw take the step of training from memory: launched once, each run rounds as the reference at its step.

In Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")

import normstab as ns
from normstab.numerics.kernels.cuda.captured_log import REPLAYS, CapturedLog
from normstab.numerics.kernels.cuda.device_log import counting_in
from normstab.numerics.ledger import COUNTERS, Ledger, Site
from normstab.numerics.sums import kernels_of_sums
from tests.norms.test_cuda_walks import IS_INTERPRETED
from tests.numerics.test_cuda_sums import run_interpreted
from tests.simulation.test_host_waits import needs_interpreter, on_device

CPU = torch.device("cpu")
STEP = 2**63 - 2  # so that the second later step is beyond int64


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
def test_kernels_draw_by_the_step_in_memory_in_tritons_interpreter():
    run_interpreted(__file__, "reference")


def numbers(*shape):
    return torch.linspace(-3, 5, int(np.prod(shape))).reshape(shape).sin() * 3


def normed(ar, x):
    layer = ns.BatchNorm1d(x.shape[1])
    layer.arithmetic = ar
    return layer(x).detach()


# What draws -> the precision, and the computation.
DRAWING = {
    "cast in 32 bits": ("fp16/stochastic", lambda ar, x: ar.cast(x)),
    "cast in 64 bits": ("fp16/stochastic:20", lambda ar, x: ar.cast(x.double())),
    "operation": ("bf16/stochastic:8", lambda ar, x: ar.add(x, x.t().contiguous().t())),
    "sum": ("fp16/stochastic/fp16:lanes4", lambda ar, x: ar.sum(x, 1)),
    "pairwise": ("fp16/stochastic/bf16:pairwise", lambda ar, x: ar.sum(x, 0)),
    "product": ("fp16/stochastic;matmul=fp16:blocked2", lambda ar, x: ar.matmul(x, x.t())),
    "welford": ("fp16/stochastic/fp16;mean=welford", lambda ar, x: ar.mean(x, 1)),
    "norm": ("fp16/stochastic/fp16:lanes4", normed),
    "exact": ("fp16/stochastic/exact", lambda ar, x: ar.sum(x, 1)),
}


@needs_interpreter
@pytest.mark.parametrize("later", [0, 1, 2])
@pytest.mark.parametrize("what", DRAWING)
def test_a_launch_that_runs_later_equals_the_reference_of_that_step(what, later, monkeypatch):
    precision, compute = DRAWING[what]
    x = numbers(5, 6)
    wanted = compute(ns.Arithmetic(precision, key=ns.Key(1, "conv", STEP + later)), x)
    log = CapturedLog(CPU)
    log.later.fill_(later)
    for kind in ("welford", "exact, rounded"):
        monkeypatch.setitem(kernels_of_sums.KERNELS, ("cpu", kind), kernels_of_sums.KERNELS["cuda", kind])
    with on_device(), counting_in(log, CPU):
        found = compute(ns.Arithmetic(precision, key=ns.Key(1, "conv", STEP)), x)
    assert torch.equal(found, wanted) and found.dtype == wanted.dtype
    if later:
        assert not torch.equal(wanted, compute(ns.Arithmetic(precision, key=ns.Key(1, "conv", STEP)), x))


SITE = Site("bn", "square")


def captured(row, counter):
    """A step with one launch, which counts what the test says: its log, and the memory of the launch."""
    log = CapturedLog(CPU)
    cells = log.borrow(2)

    def take(found, repeats):
        stamp, step = repeats.first(found[:, 1, :10] > 0, 5, 7)
        row.add(found[:, 1, :10].sum(0), 0.0, 1.0, stamp=stamp, step=step)

    log.take_back(cells, take, [row])
    log.close()
    return log, cells.counts[1, COUNTERS.index(counter) : COUNTERS.index(counter) + 1]


def replay(log, memory, n, **later):
    """What a graph does: the host tells the replay when it is, the device counts, and copies to the replay's row."""
    log.begin_replay(**later)
    memory.fill_(n)
    torch.where(log._rows == log._own_row, torch.cat(log._cells)[: log._borrowed], log._found, out=log._found)


@pytest.mark.parametrize("looks", [(), (0,), (1, 30, 31, 32)])
def test_what_replays_count_is_dated_and_added_up_whenever_anyone_looks(looks):
    ledger = Ledger()
    row = ledger.row(SITE)
    log, memory = captured(row, "overflow")
    replays = 2 * REPLAYS + 5
    for i in range(replays):
        replay(log, memory, i // 3, stamps=100 * i, steps=10 * i)
        if i in looks:
            assert ledger[SITE].overflow == sum(j // 3 for j in range(i + 1))
    assert ledger[SITE].overflow == sum(i // 3 for i in range(replays))
    assert row.first_of("overflow") == (5 + 300, 7 + 30)  # of the first replay that counted any
    assert not ledger.pending and not row.pending


def test_a_step_under_a_histogram_is_refused():
    with pytest.raises(ns.NormstabError, match="histogram"):
        CapturedLog(CPU).add_bins(Ledger(histogram=True).row(SITE), torch.zeros(3))
