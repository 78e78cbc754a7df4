"""A simulated step on CUDA does not wait for the device: what its kernels count is read when someone looks.

The kernels run in Triton's interpreter, in a process of its own, on CPU tensors that stand for those of a device.
What would wait there is a number that Python takes out of a tensor; who takes it is looked up on the stack.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("triton")
pytest.importorskip("numba")

import normstab as ns
from normstab.experiment.training.steps.training_session import Session
from normstab.experiment.training.train_cell import run_cell
from normstab.norms.fused import coverage
from normstab.norms.program import launch_program
from normstab.numerics import dispatch
from normstab.numerics.kernels.cuda import cuda_tensors
from normstab.numerics.ledger import COUNTERS, LOSSES
from normstab.numerics.sums import kernels_of_sums
from normstab.simulation.aten.round_and_attribute import settle, settle_elements
from tests.experiment.cells import small_cell
from tests.norms.test_cuda_walks import IS_INTERPRETED
from tests.numerics.test_cuda_sums import run_interpreted

# Methods of a tensor that wait for a device; to("cuda") waits too, unless it is told not to.
WAITING = ("cpu", "item", "tolist", "nonzero", "equal", "unique", "masked_select")
WAITING += ("__bool__", "__float__", "__int__", "__index__", "__array__", "__getitem__")
PACKAGE = str(Path(ns.__file__).parent)
needs_interpreter = pytest.mark.skipif(not IS_INTERPRETED, reason="runs in Triton's interpreter")


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", ["whose and plain", pytest.param("whose or training", marks=pytest.mark.nightly)])
def test_a_simulated_step_waits_for_no_device_in_tritons_interpreter(chosen):
    run_interpreted(__file__, chosen)


@contextmanager
def on_device():
    """CPU tensors go to the CUDA kernels."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setitem(launch_program.RUNNERS, "cpu", launch_program.RUNNERS["cuda"])
        patch.setattr(coverage, "covers", lambda *given, **named: False)  # kernels that a device has not
        for what in ("sums", "matmul", "exact, rounded", "quantize", "losses"):
            patch.setitem(kernels_of_sums.KERNELS, ("cpu", what), kernels_of_sums.KERNELS["cuda", what])
        patch.setitem(dispatch.LATER, "cpu", dispatch.LATER["cuda"])
        patch.setattr(dispatch, "_kernels", lambda device_type: cuda_tensors)
        yield


@pytest.fixture
def waits(monkeypatch):
    """The lines of this package that wait, and how often."""
    found = Counter()
    for name in WAITING:
        monkeypatch.setattr(torch.Tensor, name, seen(name, getattr(torch.Tensor, name), found), raising=False)
    return found


def seen(name, own, found):
    """A method that notes the line of this package that calls it."""

    def method(x, *given, **named):
        caller = sys._getframe(1)
        of_numbers = name == "__getitem__" and getattr(given[0], "dtype", None) is not torch.bool
        if not of_numbers and caller.f_code.co_filename.startswith(PACKAGE):
            found[f"{Path(caller.f_code.co_filename).name}:{caller.f_code.co_name}"] += 1
        return own(x, *given, **named)

    return method


def trained(precision, waits, *, scale=1.0, **options):
    """A step of a small network with a batch norm: what it counted, and who waited."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.BatchNorm1d(2), nn.Linear(2, 2))
    x, y = scale * torch.randn(3, 3), torch.tensor([0, 1, 1])
    if scale > 1:  # the product makes a NaN of infinities, gelu another of the one that passes
        x[0], x[1, 0] = torch.inf * torch.tensor([1.0, -1.0, 1.0]), torch.inf
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with ns.simulate(net, precision, optimizer=optimizer, seed=1, ledger=ns.Ledger(**options)) as run:
        waits.clear()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        waited = dict(waits)
    return run.ledger, waited


RUNS = {
    "plain": {"precision": "fp16", "scale": 3e4},
    "extras": {"precision": "fp16", "scale": 3e4, "histogram": True, "inexact": True},
    "emulated": {"precision": "bf16/stochastic/bf16;matmul=bf16:lanes2"},
    "exact": {"precision": "fp16/nearest/exact;matmul=exact"},
    "losses": {"precision": "fp16;matmul=fp16:lanes2", "losses": True},
    "rows": {"precision": "fp8-rowwise"},
    "blocks": {"precision": "mxfp4"},
    "whole numbers": {"precision": "int8"},
    "delayed": {"precision": "fp8-delayed"},
}
# Files that wait: functions without a kernel (of a norm taken step by step).
LEFT: dict[str, set[str]] = {"extras": {"execute.py", "event_counts.py"}}


@needs_interpreter
@pytest.mark.parametrize("run", RUNS)
def test_the_device_tells_whose_a_nan_is_and_nobody_waits(run, waits):
    now, _ = trained(waits=waits, **RUNS[run])  # which also rounds the constants, once in a process
    with on_device():
        later, waited = trained(waits=waits, **RUNS[run])
        assert {where.partition(":")[0] for where in waited} <= LEFT.get(run, set()), waited
    assert dict(later) == dict(now)
    for counter in (*COUNTERS, *LOSSES):
        assert later.first(counter) == now.first(counter)
        for site in now:
            assert later.first_step(site, counter) == now.first_step(site, counter)
    if run in ("plain", "extras"):
        assert now.total().nan_produced and now.total().nan_propagated and now.total().inf_propagated


TRAINED = {"dataset__train": 12, "dataset__size": 4, "train__batch": 2, "train__epochs": 1, "train__probe_every": 0}
TRAINED |= {"model__width": 2, "model__norm": "none", "dataset__test": 4}


@needs_interpreter
def test_steps_of_a_training_run_wait_nowhere_between_two_looks(waits, tmp_path, monkeypatch):
    taken, own = [], Session._step_unread

    def step(session, *given):
        waits.clear()
        own(session, *given)
        taken.append(dict(waits))

    monkeypatch.setattr(Session, "_step_unread", step)
    cell = small_cell("fp16", train__loss_scale="dynamic", **TRAINED)
    now = run_cell(cell, tmp_path / "now", look_every=1)
    with on_device():
        later = run_cell(cell, tmp_path / "later", look_every=4)
    assert len(taken) >= 3 and not any(taken), taken
    assert (later.weights_sha256, later.epochs, later.first) == (now.weights_sha256, now.epochs, now.first)


X = torch.tensor([[torch.nan, torch.inf, 1.0], [2.0, torch.nan, -torch.inf]])
ROW = torch.tensor([1.0, torch.inf, torch.nan])
FINITE = torch.ones(2, 3)
# Operands of elements, and of whole tensors: none, other dtypes, broadcast, strided, more than a kernel reads, complex.
OPERANDS = {
    "none": (),
    "finite": (FINITE, 3.0),
    "itself": (X.double(), FINITE.half()),
    "broadcast": (FINITE, ROW.bfloat16(), X[:, :1]),
    "strided": (X.repeat(2, 2)[::2, ::2].double(), X.t().contiguous().t()),
    "many": (FINITE, FINITE, FINITE, ROW),
    "complex": (torch.complex(FINITE, X),),
    "list": ([FINITE, X.expand(4, 2, 3)[2]],),
}


@needs_interpreter
@pytest.mark.parametrize("operands", OPERANDS.values(), ids=OPERANDS)
@pytest.mark.parametrize("how", [None, {}, {"has_poles": True}], ids=["whose", "whose_elements", "whose_poles"])
def test_plain_what_operands_have_is_passed_on_and_the_rest_was_born_here(how, operands, waits):
    ledgers = ns.Ledger(), ns.Ledger()
    for ledger in ledgers:
        call = ns.Arithmetic("fp16", ledger=ledger).call("exp")
        with on_device() if ledger is ledgers[1] else nullcontext():
            waits.clear()
            if how is None:
                settle(X.clone(), call, operands)
            else:
                settle_elements(X.clone(), call, operands, **how)
            waited = dict(waits)
    assert not waited and dict(ledgers[0]) == dict(ledgers[1])
    for counter in COUNTERS:
        assert ledgers[0].first(counter) == ledgers[1].first(counter)
