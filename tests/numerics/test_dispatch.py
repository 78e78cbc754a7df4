"""The reference serves where kernels cannot: whatever an import or a first launch raises, with one warning."""

import warnings

import pytest
import torch

import normstab as ns
from normstab.numerics import dispatch
from normstab.numerics.sums import kernels_of_sums
from normstab.numerics.version import TESTED, beyond_tested

X = torch.tensor([1.0 + 2.0**-11, 70000.0, -1e-8])


@pytest.fixture(autouse=True)
def asked_again():
    """Kernels are looked for once per process: forget what was found, before and after."""
    for cached in (dispatch._kernels, kernels_of_sums._imported):
        cached.cache_clear()
    yield
    for cached in (dispatch._kernels, kernels_of_sums._imported):
        cached.cache_clear()


def outcome():
    ledger = ns.Ledger()
    ar = ns.Arithmetic("fp16", ledger=ledger)
    return [ar.cast(X), ar.sum(X), ar.add(X, X)], dict(ledger)


class Failing:
    """Kernels that import and do not run."""

    def round_into(self, x, out, call):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")


@pytest.mark.parametrize("reason", [KeyError("no_cfunc_wrapper"), ImportError("no numba"), OSError("libLLVM.so")])
def test_whatever_an_import_raises_the_reference_serves_and_one_warning_says_why(monkeypatch, reason):
    expected, counted = outcome()
    dispatch._kernels.cache_clear()

    def fail(name):
        raise reason

    monkeypatch.setattr(dispatch, "import_module", fail)
    with pytest.warns(RuntimeWarning, match=f"no compiled kernels for cpu .{type(reason).__name__}.*reference serves"):
        found, counts = outcome()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counts == counted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome()


def test_a_first_launch_that_raises_is_caught_alike(monkeypatch):
    monkeypatch.setattr(dispatch, "import_module", lambda name: Failing())
    with pytest.warns(RuntimeWarning, match=r"cpu \(RuntimeError: Failed to find C compiler\.\)"):
        assert ns.cast(X, "fp16").tolist() == [1.0, float("inf"), -0.0]


def test_sums_that_do_not_import_are_summed_by_the_reference(monkeypatch):
    expected, counted = outcome()
    kernels_of_sums._imported.cache_clear()

    def fail(name):
        raise AttributeError("module 'numba' has no attribute 'carray'")

    monkeypatch.setattr(kernels_of_sums, "import_module", fail)
    with pytest.warns(RuntimeWarning, match="no compiled kernels for sums"):
        found, counts = outcome()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counts == counted


@pytest.mark.parametrize(("found", "is_beyond"), [("2.14.1+cu130", False), ("2.13.0", False), ("2.15.0a0", True)])
def test_a_version_beyond_those_tested_is_named_with_them(found, is_beyond):
    versions = {library: newest for library, (_, newest) in TESTED.items()} | {"torch": found}
    expected = [f"torch {found} is not among the versions tested (2.13 to 2.14)"] if is_beyond else []
    assert list(beyond_tested(versions.__getitem__)) == expected


def test_beyond_the_versions_tested_there_is_one_warning_in_a_process(monkeypatch):
    monkeypatch.setattr(dispatch, "beyond_tested", lambda: ["torch 9.9 is not among the versions tested"])
    dispatch.warn_beyond_tested.cache_clear()
    with pytest.warns(RuntimeWarning, match="torch 9.9 .*; `normstab selftest` says"):
        dispatch.kernels_for(X)
    dispatch._kernels.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch.kernels_for(X)
