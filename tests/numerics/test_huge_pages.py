"""Large results lie in huge pages, and hold what they would hold elsewhere."""

import sys

import pytest
import torch

import normstab as ns
from normstab.numerics.kernels import huge_pages
from normstab.numerics.kernels.huge_pages import HUGE, LEAST, in_huge_pages, widened_copy

LARGE = LEAST // 4 + 3 * HUGE // 4 + 5  # float32


@pytest.fixture
def asked(monkeypatch):
    """What the system was asked for."""
    calls = []
    monkeypatch.setattr(huge_pages, "_advice", lambda: lambda *given: calls.append(given))
    return calls


def test_whole_pages_within_a_large_tensor_are_asked_for(asked):
    x = torch.empty(LARGE)
    assert in_huge_pages(x) is x
    ((start, length, advice),) = asked
    assert start % HUGE == length % HUGE == 0 and length > 0 and advice == 14
    assert x.data_ptr() <= start < x.data_ptr() + HUGE
    assert x.data_ptr() + x.nbytes - HUGE < start + length <= x.data_ptr() + x.nbytes


def test_nobody_is_asked_for_small_tensors_or_where_there_is_no_memory(asked):
    in_huge_pages(torch.empty(1000))
    in_huge_pages(torch.empty(LARGE, device="meta"))
    assert asked == []


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_results_are_the_same_wherever_they_lie(system, monkeypatch):
    x = torch.randn(LARGE, generator=torch.Generator().manual_seed(0))
    expected = x.half().float(), x.half().float() + x.half().float()
    monkeypatch.setattr(sys, "platform", system)
    huge_pages._advice.cache_clear()
    try:
        assert torch.equal(ns.cast(x, "fp16"), expected[0])
        ar = ns.Arithmetic("fp32")
        assert torch.equal(ar.add(x.half(), x.half()), expected[1])
    finally:
        huge_pages._advice.cache_clear()


def test_a_wider_copy_has_the_layout_and_the_gradient_of_torchs():
    x = torch.randn(LARGE).half()[: 2 * (LARGE // 2)].view(2, -1).mT
    wide = widened_copy(x, torch.float32)
    assert torch.equal(wide, x.float()) and wide.stride() == x.float().stride() and not wide.requires_grad
    x = x.detach().requires_grad_()
    assert widened_copy(x, torch.float32).requires_grad
