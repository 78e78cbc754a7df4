"""torch's own normalization operations run as norms/ code, never as one opaque operation."""

import copy

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

import normstab
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger, Site
from normstab.simulation import simulate

LAYERS = {
    "BatchNorm1d": (nn.BatchNorm1d(6), (8, 6)),
    "BatchNorm2d": (nn.BatchNorm2d(6), (4, 6, 3, 3)),
    "BatchNorm3d": (nn.BatchNorm3d(6), (2, 6, 2, 2, 3)),
    "untracked": (nn.BatchNorm2d(6, track_running_stats=False, affine=False), (4, 6, 3, 3)),
    "GroupNorm": (nn.GroupNorm(3, 6), (4, 6, 5)),
    "LayerNorm": (nn.LayerNorm(6), (4, 3, 6)),
    "InstanceNorm2d": (nn.InstanceNorm2d(6, affine=True), (4, 6, 3, 3)),
    "RMSNorm": (nn.RMSNorm(6, eps=1e-5), (4, 3, 6)),
}
PRECISIONS = ["fp16", "bf16/stochastic", "fp16;square=fp32", "fp16/nearest/fp16:sequential"]


def filled(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return layer


def data(shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 1


def run(layer, x, grad):
    x = x.clone().requires_grad_()
    z = layer(x)
    z.backward(grad)
    return [z.detach(), x.grad, *(p.grad for p in layer.parameters()), *(b.clone() for b in layer.buffers())]


@pytest.mark.parametrize("name", LAYERS)
def test_in_fp64_every_norm_equals_torch(name):
    layer, shape = LAYERS[name]
    layer, x = filled(layer).double(), data(shape).double()
    grad = data(shape).flip(0).double()
    plain, simulated = run(copy.deepcopy(layer), x, grad), None
    with simulate(layer, "fp64") as r:
        simulated = run(layer, x, grad)
    for ours, theirs in zip(simulated, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert not r.unrecognised


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm", "GroupNorm"])
def test_a_simulated_norm_has_the_bits_and_the_ledger_of_our_layer(name, training, precision):
    layer, shape = LAYERS[name]
    layer = filled(layer)
    ours = nn.Sequential(copy.deepcopy(layer))
    normstab.replace_norms_(ours, to="l2")
    theirs = nn.Sequential(layer)
    x, grad = data(shape), data(shape).flip(0).half().float()
    results, ledgers = [], []
    for model in (ours, theirs):
        model.train(training)
        with simulate(model, precision, seed=4) as r:
            results.append(run(model, x, grad))
        ledgers.append({site: tally for site, tally in r.ledger.items() if tally.count})
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert ledgers[0] == ledgers[1]


def test_the_square_that_overflows_inside_batch_norm_is_blamed():
    layer = nn.BatchNorm2d(2)
    model = nn.Sequential(layer)
    with simulate(model, "fp16") as r:
        model(data((4, 2, 4, 4)) * 300)
    assert r.first("overflow").site == Site("0", "square")


def test_our_layers_get_an_arithmetic_for_the_block_only():
    layer = normstab.BatchNorm2d(2, norm="l1")
    before = layer.arithmetic
    model = nn.Sequential(layer)
    with simulate(model, "fp16") as r:
        assert layer.arithmetic.precision.compute.name == "fp16"
        model(data((4, 2, 4, 4)))
    assert layer.arithmetic is before
    assert r.ledger["0.dispersion.sum"].count


def test_what_batch_norm_remembers_dies_with_the_graph():
    import gc
    import weakref

    layer = nn.Sequential(nn.BatchNorm2d(2))
    x = data((4, 2, 4, 4)).requires_grad_()
    with simulate(layer, "fp16"):
        y = layer(x)
        node = y.grad_fn
        statistic = node._saved_result2
        remembered = weakref.ref(statistic.untyped_storage()._normstab.scheme)
        del statistic, node, y
        gc.collect()
        assert remembered() is None


def test_saved_tensors_that_travel_through_hooks_give_the_same_gradients():
    grads = []
    for offload in (False, True):
        model = nn.Sequential(filled(nn.BatchNorm2d(6)))
        x = data((4, 6, 3, 3)).requires_grad_()
        with simulate(model, "fp16"):
            pack = torch.clone if offload else torch.Tensor.detach
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                y = model(x)
            y.backward(torch.ones_like(y))
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_modules_are_recomputed_under_their_own_names(reentrant):
    grads, sites = [], []
    for checkpointed in (False, True):
        inner = filled(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)))
        x = data((4, 6)).requires_grad_()
        with simulate(inner, "fp16") as r:
            y = checkpoint.checkpoint(inner, x, use_reentrant=reentrant) if checkpointed else inner(x)
            y.square().sum().backward()
        grads.append(x.grad)
        sites.append({site for site in r.ledger if site.module != "(outside)"})
        assert not r.unrecognised
    assert torch.equal(*grads)
    assert sites[0] <= sites[1] | {Site("1", "sum", "backward")}


def test_an_arithmetic_of_the_users_own_choice_is_replaced_and_restored():
    layer = normstab.BatchNorm1d(3)
    layer.arithmetic = mine = Arithmetic("bf16", ledger=Ledger()).at("bn")
    with simulate(nn.Sequential(layer), "fp16"):
        assert layer.arithmetic is not mine
    assert layer.arithmetic is mine
