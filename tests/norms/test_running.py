"""Running statistics: the quick way and the arithmetic's own give the same bits and the same ledger."""

import pytest
import torch

from normstab.norms import running
from normstab.norms.modules import BatchNorm1d
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key


@pytest.mark.parametrize("scale", [1.0, 1e-37, 3e-39, 1e20, 1e38, 0.0, float("nan")])
def test_the_quick_way_equals_the_arithmetics_own(scale, monkeypatch):
    reduction = Reduction.of_batch((8, 16, 2, 2))
    results = []
    for is_quick in (True, False):
        if not is_quick:
            monkeypatch.setattr(running, "_by_kernel", lambda *arguments: False)
        generator = torch.Generator().manual_seed(0)
        ledger = Ledger()
        ar = Arithmetic("fp16", ledger=ledger).at("bn")
        buffer = torch.randn(16, generator=generator) * scale
        for _ in range(5):
            new = torch.randn(1, 16, 1, generator=generator) * scale
            running.update_running(buffer, new, 0.1, reduction, ar, operation="running_mean")
        results.append((buffer.view(torch.int32).tolist(), dict(ledger), ledger.first("count")))
    assert results[0] == results[1]


@pytest.mark.parametrize("norm", ["l2", "lp3"])
def test_the_quick_way_leaves_the_random_bits_of_later_calls_in_a_step_as_they_are(norm, monkeypatch):
    results = []
    for is_quick in (True, False):
        if not is_quick:
            monkeypatch.setattr(running, "_by_kernel", lambda *arguments: False)
        generator = torch.Generator().manual_seed(0)
        layer = BatchNorm1d(5, norm=norm)
        layer.arithmetic = Arithmetic("fp16/stochastic/fp32", ledger=Ledger(), key=Key(seed=1)).at("bn")
        for _ in range(3):
            layer(torch.randn(16, 5, generator=generator))
        results.append((layer.running_mean.tolist(), layer.running_var.tolist()))
    assert results[0] == results[1]
