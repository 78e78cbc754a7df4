"""Norm names: what parses, what does not, and what the message says."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

import normstab as ns
from normstab.errors import NormstabError
from normstab.norms.catalogue import NORMS, NormSpec, parse_norm
from normstab.norms.dispersion import DISPERSIONS


@pytest.mark.parametrize("name", [*NORMS, "top1", "top250", "lp1", "lp2.5", "lp0.5"])
def test_the_name_of_a_parsed_norm_is_the_name_it_was_parsed_from(name: str) -> None:
    spec = parse_norm(f" {name.upper()} ")
    assert str(spec) == name
    assert parse_norm(spec) is spec


def test_every_norm_has_its_two_functions() -> None:
    assert {spec.kind for spec in NORMS.values()} == set(DISPERSIONS)


def test_an_unknown_norm_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(NormstabError, match=r"unknown norm 'linff'; did you mean 'linf'\? \(l2, l1, linf, topK"):
        parse_norm("linff")


@pytest.mark.parametrize("name", ["top0", "top-3", "lp0", "lp-1", "lp1000", "lpinf", "top", "lp", "", "l3"])
def test_a_malformed_norm_raises_a_value_error_that_quotes_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"norm '{name}'"):
        parse_norm(name)


def test_a_norm_that_is_not_a_string_raises() -> None:
    with pytest.raises(NormstabError, match="a norm is a string, not int"):
        parse_norm(2)  # type: ignore[arg-type]


def test_k_and_p_belong_to_their_kind_alone() -> None:
    for wrong in ({"kind": "l2", "k": 3}, {"kind": "topk"}, {"kind": "lp"}, {"kind": "l1", "p": 2.0}):
        with pytest.raises(NormstabError):
            NormSpec(**wrong)  # type: ignore[arg-type]


def test_constants_are_those_of_the_papers() -> None:
    assert parse_norm("l1").constant(7) == pytest.approx(1.2533141373155, abs=1e-13)
    for n, expected in {128: 0.4955, 1024: 0.4145, 8192: 0.3636, 65536: 0.3277}.items():
        assert parse_norm("linf").constant(n) == pytest.approx(expected, abs=5e-5)
        assert parse_norm("top10").constant(n) == parse_norm("linf").constant(n)
    assert parse_norm("range").constant(1024) == 1 / math.sqrt(2 * math.log(1024))
    assert [NORMS[name].constant(1) for name in ("linf", "range", "l2")] == [1.0, 1.0, 1.0]


def test_more_members_than_values_raise() -> None:
    parse_norm("top10").require_values(10)
    with pytest.raises(NormstabError, match=r"top10.*only 9"):
        parse_norm("top10").require_values(9)


def expected_range(n: int) -> float:
    """Return the mean range of n standard normal values: 1 - F(x)^n - (1 - F(x))^n, integrated over x."""
    step = 1e-3
    cdf = [NormalDist().cdf((i + 0.5) * step) for i in range(9000)]
    return 2 * step * sum(1 - f**n - (1 - f) ** n for f in cdf)


@pytest.mark.parametrize(("n", "deviation"), [(128, 0.600), (1024, 0.573), (8192, 0.558)])
def test_neither_constant_of_range_makes_sigma(n: int, deviation: float) -> None:
    rows = 256
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranges = x.amax(1) - x.amin(1)
    error = 4 * ranges.std().item() / math.sqrt(rows)
    assert abs(ranges.mean().item() - expected_range(n)) <= error
    for factor, expected in ((1.0, deviation), (0.5, 2 * deviation)):
        scale = factor * parse_norm("range").constant(n) * expected_range(n)
        assert 1 / scale == pytest.approx(expected, abs=1e-3)
    layer = ns.BatchNorm1d(1, norm="range", affine=False)
    found = layer(x.T[:, :1].float()).std(correction=0).item()
    assert found == pytest.approx(
        x[0].std(correction=0).item() / (parse_norm("range").constant(n) * ranges[0].item()), rel=1e-4
    )
