"""Weight norm and bounded weight norm: values, gradients, bounds, and what torch keeps of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normstab.errors import NormstabError
from normstab.norms.weight import bounded_weight_norm, weight_norm
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger

KINDS = {"l2": 2.0, "l1": 1.0, "linf": math.inf}


def norms_of(weight: Tensor, kind: str) -> Tensor:
    """Return the norm of each output channel, in float64."""
    return torch.linalg.vector_norm(weight.detach().double().flatten(1), ord=KINDS[kind], dim=1)


def test_l2_weight_norm_is_torchs_own_and_shares_its_state_dict() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    theirs.load_state_dict(ours.state_dict())
    weight_norm(ours)
    nn.utils.parametrizations.weight_norm(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 6, 6)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its)
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [0, 1, -1, None])
@pytest.mark.parametrize("precision", ["native", "fp64"])
@pytest.mark.parametrize("wrap", [weight_norm, bounded_weight_norm])
def test_every_gradient_passes_gradcheck(kind: str, dim: int | None, precision: str, wrap: object) -> None:
    torch.manual_seed(1)
    layer = wrap(nn.Conv2d(3, 4, 2).double(), norm=kind, dim=dim)  # type: ignore[operator]
    parametrization = layer.parametrizations.weight[0]
    parametrization.arithmetic = precision
    originals = [p.detach().clone().requires_grad_() for p in layer.parametrizations.weight.parameters()]
    assert torch.autograd.gradcheck(parametrization, tuple(originals))


@pytest.mark.parametrize("kind", KINDS)
def test_bounded_weights_have_the_mean_norm_of_the_first_weights(kind: str) -> None:
    torch.manual_seed(2)
    layer = nn.Conv2d(3, 6, 3)
    rho = float(norms_of(layer.weight, kind).mean())
    original = layer.weight
    bounded_weight_norm(layer, norm=kind)
    torch.testing.assert_close(
        norms_of(layer.weight, kind), torch.full((6,), rho, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert layer.parametrizations.weight.original is original
    assert "parametrizations.weight.0.rho" in layer.state_dict()
    other = bounded_weight_norm(nn.Conv2d(3, 6, 3), norm=kind, rho=1.0)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(list(KINDS)),
    p=st.sampled_from([("fp16", 11), ("bf16", 8), ("tf32", 11)]),
    order=st.sampled_from(["sequential", "pairwise", "blocked8", "lanes8"]),
    seed=st.integers(0, 500),
    rho=st.sampled_from([1.0, 1.5, 0.3, 4.0]),
)
def test_the_norm_of_bounded_weights_is_rho_within_the_derived_bound(
    kind: str, p: tuple[str, int], order: str, seed: int, rho: float
) -> None:
    # (h/2 + 5) u rho for l2, (h + 4) u rho for l1, 4 u rho for linf; nearest, no subnormals.
    name, precision = p
    n, u = 3 * 5 * 5, 2.0**-precision
    height = {"sequential": n - 1, "pairwise": 7, "blocked8": 7 + 9, "lanes8": 9 + 3}[order]
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(3, 4, 5)
    # Away from zero, so that neither squares nor quotients are subnormal.
    values = torch.rand(layer.weight.shape, generator=generator) + 0.25
    layer.weight.data = values * (torch.randint(0, 2, values.shape, generator=generator) * 2 - 1)
    bounded_weight_norm(layer, norm=kind, rho=rho)
    ledger = Ledger()
    layer.parametrizations.weight[0].arithmetic = Arithmetic(f"{name}/nearest/{name}:{order}", ledger=ledger).at("w")
    found = norms_of(layer.weight, kind)
    assert ledger.total().subnormal == ledger.total().overflow == 0
    bound = {"l2": height / 2 + 5, "l1": height + 4, "linf": 4}[kind] * u * rho
    assert (found - rho).abs().max() <= bound


def test_the_sites_of_an_emulated_weight_are_counted_by_name_and_direction() -> None:
    layer = weight_norm(nn.Linear(4, 3), norm="l1")
    ledger = Ledger()
    layer.parametrizations.weight[0].arithmetic = Arithmetic("fp16", ledger=ledger).at("fc.weight")
    layer(torch.randn(2, 4)).sum().backward()
    names = {str(site) for site in ledger}
    for name in ("input", "gamma", "dispersion.sum", "divide", "scale"):
        assert f"fc.weight.{name}[forward]" in names
    for name in ("grad", "product.sum", "project", "subtract", "slope", "scale", "dgamma"):
        assert f"fc.weight.{name}[backward]" in names


def test_a_zero_slice_is_named_at_its_division() -> None:
    layer = bounded_weight_norm(nn.Linear(4, 3), rho=1.0)
    layer.parametrizations.weight.original.data[1] = 0
    ledger = Ledger()
    layer.parametrizations.weight[0].arithmetic = Arithmetic("fp16", ledger=ledger).at("fc")
    assert layer.weight[1].isnan().all()
    assert ledger["fc.divide"].nan_produced == 4


def test_wrong_arguments_are_answered_clearly() -> None:
    with pytest.raises(NormstabError, match="unknown weight norm 'linff'; did you mean 'linf'"):
        weight_norm(nn.Linear(2, 2), norm="linff")
    with pytest.raises(NormstabError, match="unknown weight norm 'top10'"):
        bounded_weight_norm(nn.Linear(2, 2), norm="top10")
    with pytest.raises(NormstabError, match="dim 5 is out of range"):
        weight_norm(nn.Linear(2, 2), dim=5)
    with pytest.raises(NormstabError, match="no tensor 'weights'"):
        weight_norm(nn.Linear(2, 2), "weights")
    with pytest.raises(NormstabError, match="rho is a positive norm"):
        bounded_weight_norm(nn.Linear(2, 2), rho=-1.0)
