"""Running statistics: the quick way and the arithmetic's own give the same bits and the same ledger."""

import pytest
import torch

from normstab.norms import running
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger


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
