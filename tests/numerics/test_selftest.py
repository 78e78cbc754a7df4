"""The self-test passes here, and a wrong bit or a wrong counter would fail it."""

import pytest
import torch

import normstab as ns
from normstab.testing import selftest


def test_every_check_passes_on_this_machine():
    failed = [check for check in selftest.run_selftest() if not check.passed]
    assert failed == []


def test_a_single_wrong_result_is_seen(monkeypatch):
    honest = selftest.cast

    def one_bit_wrong(x, *arguments, **options):
        y = honest(x, *arguments, **options).clone()
        y[100] = -y[100]
        return y

    monkeypatch.setattr(selftest, "cast", one_bit_wrong)
    assert not selftest._casts("fp16", torch.device("cpu")).passed
    assert selftest._digest(torch.device("cpu")) != selftest.GOLDEN


def test_a_wrong_counter_is_seen(monkeypatch):
    class Forgetful(ns.Ledger):
        def __getitem__(self, site):
            return super().__getitem__(site) + ns.Tally(overflow=1)

    monkeypatch.setattr(selftest, "Ledger", Forgetful)
    assert not selftest._casts("e5m2", torch.device("cpu")).passed


def test_a_missing_gpu_is_said():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ns.NormstabError, match="CUDA"):
        selftest.run_selftest("cuda")
