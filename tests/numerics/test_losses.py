"""Absorbed, cancelled, and what is lost inside sums: against a definition in whole numbers."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import normstab as ns
from normstab.numerics.precision import Precision
from normstab.numerics.sums import kernels_of_sums

HALVES = [float(np.uint16(bits).view(np.float16)) for bits in range(0, 1 << 16, 37)]
VALUES = st.sampled_from([x for x in HALVES if math.isfinite(x)] + [0.0, -0.0, 1.0, 2048.0, 65504.0, -65504.0])


def half(x: Fraction) -> float:
    """The exact value rounded to half precision: numpy rounds a float64 sum of two halves once, for it is exact."""
    with np.errstate(over="ignore"):
        return float(np.float16(float(x)))


def exponent(x: float) -> int:
    return math.frexp(x)[1]


def lost(a: float, b: float, result: float) -> tuple[bool, bool]:
    """Return whether a + b = `result` was absorbed, and whether it cancelled."""
    absorbed = (result == a and b != 0) or (result == b and a != 0)
    if a == 0 or b == 0 or math.isinf(result):
        return absorbed, False
    return absorbed, result == 0 or exponent(result) <= max(exponent(a), exponent(b)) - 6  # p = 11


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20), st.sampled_from(["add", "sub"]))
def test_additions_and_subtractions_as_defined(pairs: list[tuple[float, float]], operation: str) -> None:
    ledger = ns.Ledger(losses=True)
    a, b = (torch.tensor(column) for column in zip(*pairs, strict=True))
    getattr(ns.Arithmetic("fp16", ledger=ledger), operation)(a, b)
    sign = -1.0 if operation == "sub" else 1.0
    expected = [lost(x, sign * y, half(Fraction(x) + Fraction(sign * y))) for x, y in pairs]
    found = ledger[operation]
    assert (found.absorbed, found.cancelled) == (sum(e[0] for e in expected), sum(e[1] for e in expected))


@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=20))
def test_of_an_fma_the_operands_are_the_rounded_product_and_the_addend(terms: list[tuple[float, float, float]]) -> None:
    ledger = ns.Ledger(losses=True)
    a, b, c = (torch.tensor(column) for column in zip(*terms, strict=True))
    result = ns.Arithmetic("fp16", ledger=ledger).fma(a, b, c).tolist()
    finite = [(half(Fraction(x) * Fraction(y)), z, r) for (x, y, z), r in zip(terms, result, strict=True)]
    expected = [lost(product, z, r) for product, z, r in finite if math.isfinite(product)]
    infinite = [(p, z, r) for p, z, r in finite if not math.isfinite(p)]
    # An infinite product equals the result and absorbs an addend that is not zero; nothing finite cancels in it.
    absorbed = sum(1 for p, z, r in infinite if r == p and z != 0)
    found = ledger["fma"]
    assert found.absorbed == sum(e[0] for e in expected) + absorbed
    assert found.cancelled == sum(e[1] for e in expected)


def test_one_tensor_minus_itself_is_no_cancellation_and_two_zeros_are_none() -> None:
    ledger = ns.Ledger(losses=True)
    ar, x = ns.Arithmetic("fp16", ledger=ledger), torch.randn(8)
    ar.sub(x, x, operation="itself")
    ar.sub(x, x.clone(), operation="a copy")
    ar.add(torch.zeros(8), torch.zeros(8), operation="zeros")
    assert (ledger["itself"].cancelled, ledger["a copy"].cancelled, ledger["zeros"].cancelled) == (0, 8, 0)


@pytest.mark.parametrize(
    ("order", "absorbed"), [("sequential", 2048), ("pairwise", 0), ("blocked64", 0), ("lanes64", 0)]
)
def test_a_sum_that_stalls_says_where(order: str, absorbed: int) -> None:
    ledger = ns.Ledger(losses=True)
    ar = ns.Arithmetic(f"fp16/nearest/fp16:{order}", ledger=ledger)
    # 2048 + 1 is a tie that goes to the even 2048: from there on every addend is absorbed.
    assert ar.sum(torch.ones(4096)).item() == 4096 - absorbed
    assert ledger["sum"].absorbed == absorbed


def test_counting_losses_changes_no_bit_and_no_other_counter() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(6, 40) * 100, torch.randn(40, 5)
    for precision in (
        "fp16",
        "e4m3/toward-zero/fp16:sequential",
        "fp16/stochastic/fp16:blocked4",
        "fp16/nearest/fp16:sequential+kahan",
    ):
        for matmul in ("", ";matmul=fp32:blocked8", ";matmul=fp16:blocked8", ";matmul=fp16:sequential+fused"):
            spec = Precision.parse(precision + matmul)
            results, tallies = [], []
            for losses in (False, True):
                ledger = ns.Ledger(losses=losses)
                ar = ns.Arithmetic(spec, ledger=ledger, key=ns.Key(seed=1))
                y = ar.matmul(x, w)
                out = torch.empty_like(y)
                results.append([y, ar.sum(x, 1), ar.mean(x, 0), ar.fma(x, 2.0, x), ar.add(y, y, out=out), out])
                tallies.append({s: pickle.loads(pickle.dumps(t)) for s, t in ledger.items()})
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
            kept = {s: ns.Tally(**{**vars(t), "absorbed": 0, "cancelled": 0}) for s, t in tallies[1].items()}
            assert kept == tallies[0]


def test_in_place_results_are_compared_with_what_was_there() -> None:
    ledger = ns.Ledger(losses=True)
    x = torch.tensor([2048.0, 3.0])
    ns.Arithmetic("fp16", ledger=ledger).add(x, torch.ones(2), out=x)
    assert x.tolist() == [2048.0, 4.0]
    assert ledger["add"].absorbed == 1


def test_a_result_written_over_its_operands_is_compared_with_all_of_them() -> None:
    ledger = ns.Ledger(losses=True)
    ar, x = ns.Arithmetic("fp16", ledger=ledger), torch.tensor([2048.0, 3.0])
    ar.add(x, 1.0, out=x.view(2))  # another tensor on the same memory
    assert ledger["add"].absorbed == 1
    x = torch.ones(3)
    ar.sub(x, x, out=x, operation="itself")
    assert ledger["itself"].cancelled == 0


def test_losses_are_kept_in_copies_drained_and_have_a_first() -> None:
    ledger = ns.Ledger(losses=True)
    ar = ns.Arithmetic("fp16", ledger=ledger)
    ar.advance()
    ar.at("ema").add(torch.tensor([2048.0]), 1.0)
    site = ns.Site("ema", "add")
    again = pickle.loads(pickle.dumps(ledger))
    for copy in (ledger, again):
        assert copy.first("absorbed") == ns.First(site, 1)
        assert copy.first_step(site, "absorbed") == 1
        assert copy.first("cancelled") is None
        assert copy.first("absorbed", besides=[("absorbed", site)]) is None
    ns.Arithmetic("fp16", ledger=again).at("ema").add(torch.tensor([2048.0]), 1.0)
    assert again[site].absorbed == 2  # a copy counts on as it was asked to
    assert ledger.drain()[site].absorbed == 1
    assert ledger[site].absorbed == 0 and ledger.first("absorbed") is not None
    assert (ns.Tally(absorbed=1, lost_updates=2) + ns.Tally(absorbed=2, cancelled=1)) == ns.Tally(
        absorbed=3, cancelled=1, lost_updates=2
    )


def test_without_being_asked_nothing_is_counted() -> None:
    ledger = ns.Ledger()
    ns.Arithmetic("fp16", ledger=ledger).add(torch.tensor([2048.0]), 1.0)
    assert ledger["add"].absorbed == 0


def test_a_ledger_can_count_losses_for_a_while() -> None:
    ledger = ns.Ledger()
    ar = ns.Arithmetic("fp16", ledger=ledger)
    for _ in range(2):
        ar.add(torch.tensor([2048.0]), 1.0)
        with pytest.raises(RuntimeError), ledger.counting_losses():
            ar.add(torch.tensor([2048.0]), 1.0)
            ar.add(torch.tensor([2048.0]), 1.0, operation="another")
            raise RuntimeError
    ar.add(torch.tensor([2048.0]), 1.0, operation="another")
    assert (ledger["add"].count, ledger["add"].absorbed, ledger["another"].absorbed) == (4, 2, 2)
    assert not ledger.counts_losses


SPECIAL = (math.inf, math.nan, 3e38, 3e38, 2.0**-140, -0.0)
COUNTED_ALIKE = (
    "fp16/nearest/fp32:lanes4",
    "fp16/nearest/fp32:blocked8",
    "fp16/nearest/fp16:pairwise",
    "e4m3/toward-zero/fp16:sequential",
    "q4.4/nearest/q8.8:lanes4",
    "fp16/down/fp16:sequential",
    "bf16/stochastic/bf16:lanes4",
    "fp16/stochastic/fp16:pairwise",
    "fp16/nearest/fp16:sequential+kahan",
    "fp16/nearest/fp32:blocked8+kahan",
    "fp64/nearest/fp64:lanes4",
    "e9m23/nearest/e9m23:sequential",
    "fp16/nearest/fp32:lanes4;mean=welford",
    "fp16/nearest/fp16:sequential;mean=blockwise8",
    "fp16;matmul=fp16:blocked8",
    "fp16;matmul=fp16:sequential+fused",
    "fp16/toward-zero;matmul=fp16:sequential+fused",
    "bf16/stochastic;matmul=fp32:lanes4",
)


@pytest.mark.parametrize("precision", COUNTED_ALIKE)
def test_kernels_count_what_additions_lose_as_the_definition_does(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    x = torch.randn(5, 3, 37) * 2.0 ** torch.randint(-20, 20, (5, 3, 37)).float()
    x[2].flatten()[: len(SPECIAL)] = torch.tensor(SPECIAL)
    w = torch.randn(37, 4)
    found = []
    for is_compiled in (True, False):
        if not is_compiled:
            monkeypatch.setattr(kernels_of_sums, "COUNTING_LOSSES", [])
            monkeypatch.delitem(kernels_of_sums.KERNELS, ("cpu", "losses"))
        ledger = ns.Ledger(losses=True, inexact=True)
        ar = ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=3))
        results = [ar.sum(x, (0, 2)), ar.sum(x.mT, 1), ar.mean(x, (0, 2)), ar.mean(x, 1), ar.matmul(x, w)]
        results += [ar.add(x, x.flip(0)), ar.sub(x.mT, x[:1].mT), ar.add(x.double(), 1e-3), ar.sub(-0.5, x[:, :1])]
        bits = [r.double().view(torch.int64).tolist() for r in results]
        found.append((bits, {site: pickle.loads(pickle.dumps(tally)) for site, tally in ledger.items()}))
    assert found[0] == found[1]
    assert sum(tally.absorbed for tally in found[0][1].values()) and sum(t.cancelled for t in found[0][1].values())
    plain = ns.Arithmetic(precision, key=ns.Key(seed=3)).sum(x, (0, 2))
    assert plain.double().view(torch.int64).tolist() == found[0][0][0]
