"""The first calls where nothing is compiled: the reference serves small ones, until compiling pays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import normstab as ns
from normstab.numerics import first_calls
from normstab.numerics.first_calls import PATIENCE_S, SMALL, FirstCalls
from normstab.numerics.kernels.cpu import compile as compiling

STEP = """
import hashlib, sys
import torch
from numba.core import event
import normstab as ns
from normstab.numerics import first_calls

first_calls.PATIENCE_S = 60.0  # however slow the machine
compiled = event.RecordingListener()
ledger = ns.Ledger()
layer = ns.BatchNorm2d(3, norm="{norm}")
layer.arithmetic = ns.Arithmetic("{precision}", ledger=ledger, key=ns.Key(seed=1)).at("bn")
x = (300 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
with event.install_listener("numba:compile", compiled):
    y = layer(x)
    y.square().sum().backward()
results = (y, x.grad, layer.weight.grad, layer.running_mean, layer.running_var)
bits = b"".join(result.detach().numpy().tobytes() for result in results)
print(len(compiled.buffer), hashlib.sha256(bits + repr(sorted(dict(ledger).items(), key=repr)).encode()).hexdigest())
"""


@pytest.mark.parametrize("norm, precision", [("l1", "fp16/nearest/fp32"), ("l2", "fp16/stochastic/fp16")])
def test_a_small_layer_compiles_nothing_and_has_the_bits_and_counts_of_the_kernels(tmp_path, norm, precision):
    code = STEP.format(norm=norm, precision=precision)
    found = []
    for environment in (os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, os.environ):
        # The second process is told that all is to be compiled, as the tests of this suite are.
        told = "" if not found else "from normstab.numerics.first_calls import FIRST_CALLS\nFIRST_CALLS.end()\n"
        run = subprocess.run([sys.executable, "-c", told + code], capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr[-2000:]
        found.append(run.stdout.split())
    assert found[0][0] == "0"
    assert found[0][1] == found[1][1]
    assert not list(tmp_path.rglob("*.nbc"))


@pytest.fixture
def cold(monkeypatch):
    """The first calls of a process that finds nothing compiled, and a clock that the test sets."""
    clock = [0.0]
    monkeypatch.setattr(compiling, "is_kept", lambda kernel: False)
    monkeypatch.setattr(first_calls.time, "process_time", lambda: clock[0])
    return FirstCalls(), clock


def test_small_calls_are_served_until_the_patience_is_spent(cold):
    calls, clock = cold
    clock[0] = 100.0  # what the process did before does not count
    assert calls.serve(torch.zeros(SMALL))
    clock[0] += PATIENCE_S
    assert calls.serve(torch.zeros(1))
    clock[0] += 0.1
    assert not calls.serve(torch.zeros(1))
    clock[0] = 100.0
    assert not calls.serve(torch.zeros(1)), "once over, it does not begin again"


def test_a_large_tensor_ends_it_for_good(cold):
    calls, _ = cold
    assert calls.serve(torch.zeros(1))
    assert not calls.serve(torch.zeros(SMALL + 1))
    assert not calls.serve(torch.zeros(1))


def test_tensors_of_other_devices_have_no_say(cold):
    calls, _ = cold
    assert not calls.serve(torch.zeros(SMALL + 1, device="meta"))
    assert calls.serve(torch.zeros(1))


def test_where_compiled_kernels_are_kept_they_serve_from_the_first_call(monkeypatch):
    monkeypatch.setattr(compiling, "is_kept", lambda kernel: True)
    assert not FirstCalls().serve(torch.zeros(1))


def test_kernels_are_kept_once_they_have_run():
    ns.cast(torch.zeros(SMALL + 1), "fp16")
    from normstab.numerics.kernels.cpu.cpu_round import nearest32

    if nearest32._cache is None or not os.access(nearest32._cache.cache_path, os.W_OK):
        pytest.skip("no folder here is writable")
    assert compiling.is_kept(nearest32)
