"""A captured step has the bits and the counts of one that is not, in every replay.

There is no GPU here: kernels run in Triton's interpreter, in a process of its own, and a stand-in for CUDA's graphs
runs what was recorded again, at the same addresses.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("triton")
pytest.importorskip("numba")

import normstab as ns
from normstab.numerics import dispatch
from normstab.numerics.ledger import COUNTERS, LOSSES
from normstab.numerics.philox import philox
from normstab.numerics.scaled.scale_history import ScaleHistory
from tests.norms.test_cuda_walks import IS_INTERPRETED
from tests.numerics.test_cuda_sums import run_interpreted
from tests.simulation.fake_graph import fake_graphs
from tests.simulation.test_host_waits import needs_interpreter, on_device

SOME, OTHERS = "stochastic or captured_and or waits", "nearest or overflowing or losses or whole"


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", [SOME, pytest.param(OTHERS, marks=pytest.mark.nightly)])
def test_captured_steps_equal_others_in_tritons_interpreter(chosen):
    run_interpreted(__file__, chosen)


def batches(n, scale=1.0):
    torch.manual_seed(1)
    return [(scale * torch.randn(3, 3), torch.randint(2, (3,))) for _ in range(n)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.BatchNorm1d(2), nn.Linear(2, 2))


def trained(precision, *, steps=4, captures, scale=1.0, ledger=None):
    """Train with a captured step, or as ever: the run, the network, and all losses."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    counts = ns.Ledger(**(ledger or {}))
    with ns.simulate(net, precision, optimizer=optimizer, seed=1, ledger=counts) as run:

        def step(x, y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        taken = run.capture(step, warm_up=1) if captures else step
        losses = []
        for x, y in batches(steps, scale):
            losses.append(taken(x, y).detach().clone())
        assert not captures or (taken.is_captured and taken.replays == steps - 1)
    return run, net, losses


def assert_alike(found, wanted):
    """Bits, counts, first offences, the step."""
    (run, net, losses), (own_run, own_net, own_losses) = found, wanted
    for x, y in zip([*losses, *net.state_dict().values()], [*own_losses, *own_net.state_dict().values()], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    assert (run.step, dict(run.unrecognised), run.notes) == (own_run.step, dict(own_run.unrecognised), own_run.notes)
    assert list(run.ledger) == list(own_run.ledger)
    for site, tally in own_run.ledger.items():
        assert run.ledger[site] == tally, site
        for counter in (*COUNTERS, *LOSSES):
            assert run.ledger.first_step(site, counter) == own_run.ledger.first_step(site, counter), (site, counter)
    for counter in (*COUNTERS, *LOSSES):
        assert run.first(counter) == own_run.first(counter)


CASES = {
    "nearest": {"precision": "fp16"},
    "overflowing": {"precision": "fp16", "scale": 3e4},
    "stochastic": {"precision": "bf16/stochastic/bf16"},
    "losses": {"precision": "fp16;matmul=fp16:lanes2", "ledger": {"losses": True}},
    "whole numbers": {"precision": "int8", "scale": 3.0},
}


@needs_interpreter
@pytest.mark.parametrize("case", CASES)
def test_replays_have_the_bits_and_the_counts_of_steps(case):
    with on_device(), fake_graphs():
        wanted = trained(**CASES[case], captures=False)
        found = trained(**CASES[case], captures=True)
    assert_alike(found, wanted)


def small_runs(captures, take, **options):
    """Two runs of a network of one layer by `take(run, net, optimizer, captured step)`, in random bits."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with ns.simulate(net, "bf16/stochastic", optimizer=optimizer, seed=1, **options) as run:

        def step(x):
            optimizer.zero_grad()
            loss = net(x).square().sum()
            loss.backward()
            return loss

        found = take(run, net, optimizer, run.capture(step, warm_up=1) if captures else step)
    return run, net, found


@needs_interpreter
def test_captured_and_other_steps_in_turn_are_those_of_one_run():
    def take(run, net, optimizer, step):
        losses = []
        for i in range(6):
            x = batches(1)[0][0][: 2 if i == 3 else 3] * (i + 1)  # of another shape once: not replayed
            if i == 4:
                net(x)  # the parameters are cast in this step already: not replayed
            losses.append(step(x).detach().clone())
            optimizer.param_groups[0]["lr"] *= 0.5  # the optimizer is not part of the step
            optimizer.step()
        return losses

    with on_device(), fake_graphs():
        wanted = small_runs(False, take)
        taken = []
        found = small_runs(True, lambda *given: (taken.append(given[-1]), take(*given))[1])
    assert taken[0].is_captured and taken[0].replays == 3
    assert_alike(found, wanted)


@needs_interpreter
def test_a_step_that_waits_is_not_captured_and_costs_nothing():
    def take(run, net, optimizer, step):
        waiting = lambda x: (step(x), float(x.sum()))[0]  # noqa: E731
        captured = run.capture(waiting, warm_up=0)
        losses = []
        for x, _ in batches(2):
            with pytest.raises(ns.NormstabError, match="cannot be captured: RuntimeError: _local_scalar_dense"):
                captured(x)
            losses.append(step(x).detach())
            optimizer.step()
        return losses

    def take_plain(run, net, optimizer, step):
        return [(step(x).detach(), optimizer.step())[0] for x, _ in batches(2)]

    with on_device(), fake_graphs():
        wanted = small_runs(False, take_plain)
        found = small_runs(False, take)
    assert_alike(found, wanted)


REFUSED = {
    "no graphs": {},
    "histograms": {"ledger": ns.Ledger(histogram=True)},
    "shown every operation": {"observer": lambda site, x: None},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_captured_is_refused_by_name(reason, monkeypatch):
    if REFUSED[reason]:
        monkeypatch.setitem(dispatch.LATER, "cpu", dispatch.LATER["cuda"])
    net = nn.Linear(2, 2)
    with ns.simulate(net, "fp16", **REFUSED[reason]) as run, pytest.raises(ns.NormstabError, match=reason):
        run.capture(net)


def test_what_goes_by_the_step_of_the_host_is_not_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ns.NormstabError, match="random bits drawn by the torch reference cannot be captured"):
        philox(1, 2, torch.arange(3))
    with pytest.raises(ns.NormstabError, match="scales of earlier steps cannot be captured"):
        ScaleHistory().amax("layer.operand.input", 0, torch.ones(()), 4)
