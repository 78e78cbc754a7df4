"""Functions and roots on the CPU have the bits and counters of the readable code, which they do not reach."""

import pytest
import torch

pytest.importorskip("numba")

import normstab as ns
from normstab.numerics import execute
from normstab.numerics.kernels.cpu import cpu_functions
from normstab.numerics.readable import powers
from normstab.numerics.readable.operations import exact_root, widened
from normstab.numerics.readable.reference import encode
from tests.numerics.kernel_oracle import bits_of, contents, patterns

FUNCTIONS = {"exp": torch.exp, "log": torch.log, "pow": lambda x: torch.pow(x, 2.5), "itself": lambda x: x}


@pytest.mark.parametrize("p", [3, 4, 7, 64, 65])
def test_roots_are_those_of_whole_numbers(p):
    wide = patterns(torch.float64, 600, seed=1)
    short = torch.randint(1, 40, (300,), generator=torch.Generator().manual_seed(2)).double() ** min(p, 9)
    close = torch.nextafter(short, torch.tensor(torch.inf, dtype=torch.float64))
    for x in (wide, wide.abs(), patterns(torch.float32, 600, seed=3).double(), short, close, -short):
        assert torch.equal(bits_of(canonical(cpu_functions.root(x, p))), bits_of(canonical(exact_root(x, p))))


def canonical(x):
    return torch.where(x.isnan(), torch.nan, x)


def test_few_roots_are_left_to_whole_numbers(monkeypatch):
    asked = []
    monkeypatch.setattr(cpu_functions, "exact_root", lambda x, p: asked.append(len(x)) or exact_root(x, p))
    x = torch.rand(20_000, generator=torch.Generator().manual_seed(4)).double() + 1
    cpu_functions.root(x, 3)
    assert sum(asked) <= 2
    asked.clear()
    for p, longest in ((3, 1 << 17), (5, 1 << 10), (17, 8), (64, 1)):  # short numbers, whose powers float64 holds
        cpu_functions.root((torch.arange(1, 1000) % (longest + 1)).double() ** p, p)
    assert not asked


def test_widening_and_narrowing_are_those_by_bits():
    x = patterns(torch.float32, 5000, seed=5)
    x[-64:] = torch.arange(64, dtype=torch.int32).view(torch.float32)  # subnormals
    wide = widened(x)
    for flushes in (False, True):
        if flushes and not torch.set_flush_denormal(True):
            pytest.skip("the processor does not flush subnormals")
        try:
            found, back = cpu_functions.widen(x), cpu_functions.narrow(wide)
        finally:
            torch.set_flush_denormal(False)
        assert torch.equal(bits_of(canonical(found)), bits_of(canonical(wide)))
        assert torch.equal(bits_of(back), bits_of(encode(wide, torch.float32)))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("precision", ["fp16", "bf16/stochastic", "q7.8", "fp32", "e2m1/toward-zero"])
def test_functions_have_the_bits_and_counts_of_the_readable_code(name, precision, monkeypatch):
    ordinary = torch.rand(300, generator=torch.Generator().manual_seed(6)) * 4
    for x in (ordinary, patterns(torch.float32, 300, seed=7), ordinary.double(), ordinary.half().view(20, 15).T):
        found = applied(FUNCTIONS[name], x, precision)
        with monkeypatch.context() as patch:
            patch.setattr(execute, "kernels_for", lambda *_: None)
            patch.setattr(execute.backends, "kernels_for", lambda *_: None)
            expected = applied(FUNCTIONS[name], x, precision)
        assert torch.equal(bits_of(found[0]), bits_of(expected[0]))
        assert found[0].dtype == expected[0].dtype and found[1] == expected[1]


def applied(function, x, precision):
    """The result, and what was counted."""
    ledger = ns.Ledger(inexact=True, histogram=True)
    result = ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=1)).apply(function, x, operation="f")
    return result, [contents(row) for row in ledger._rows.values()]


def test_no_function_reaches_the_readable_code(monkeypatch):
    def refuse(*_):
        raise AssertionError("the readable code was reached")

    monkeypatch.setattr(execute, "encode", refuse)
    monkeypatch.setattr(execute, "widened", refuse)
    monkeypatch.setattr(powers, "exact_root", refuse)
    ar, x = ns.Arithmetic("fp16", ledger=ns.Ledger()), torch.rand(64) + 1
    ar.root(x, 3), ar.power(x, 2.5), ar.apply(torch.exp, x, operation="exp")
