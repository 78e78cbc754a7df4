"""Parameters, buffers, gradients and optimizer states in their own formats, with and without master weights."""

import torch
from torch import nn

from normstab.numerics.ledger import Site
from normstab.numerics.rounding import cast
from normstab.simulation import simulate
from tests.simulation.networks import images, network, sgd, train_step


def test_the_parameter_role_is_the_format_of_weights_in_use():
    layer = nn.Linear(3, 3, bias=False)
    with simulate(layer, "fp16;parameter=e5m2"), torch.no_grad():
        found = layer(torch.eye(3)).t()
    assert torch.equal(found, cast(layer.weight.detach(), "e5m2"))


def test_the_gradient_role_is_the_format_of_backward_results():
    model, (x, y) = network(), images()
    with simulate(model, "fp16;gradient=e5m2") as run:
        nn.functional.cross_entropy(model(x), y).backward()
    assert all(torch.equal(p.grad, cast(p.grad, "e5m2")) for p in model.parameters())
    with simulate(model, "fp16;gradient=e5m2"):
        forward = model(x)
    assert not torch.equal(forward, cast(forward, "e5m2"))
    assert run.ledger[Site("stem", "convolution_backward.weight", "backward")].count


def test_master_weights_stay_wide_and_states_are_in_the_optimizer_format():
    model, (x, y) = network(), images()
    optimizer = sgd(model)
    with simulate(model, "fp16;optimizer=bf16", optimizer=optimizer):
        for _ in range(2):
            train_step(model, optimizer, x, y)
    weight = model.head.weight
    assert not torch.equal(weight, weight.half().float())
    momentum = optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(momentum, momentum.bfloat16().float())


def test_without_master_weights_parameters_are_rounded_at_entry_and_after_each_step():
    for given in (True, False):
        model, (x, y) = network(), images()
        optimizer = sgd(model)
        before = model.head.weight.detach().clone()
        with simulate(model, "fp16", optimizer=optimizer if given else None, master_weights=False) as run:
            assert torch.equal(model.head.weight, before.half().float())
            train_step(model, optimizer, x, y)
            after = model.head.weight.detach().clone()
            assert torch.equal(after, after.half().float())
            assert not torch.equal(after, before.half().float())
        assert Site("head", "weight", "optimizer") in run.ledger
        assert torch.equal(model.head.weight, after)


def test_small_updates_vanish_without_master_weights_only():
    for master, moves in ((True, True), (False, False)):
        layer = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1.0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=2.0**-13)
        with simulate(layer, "fp16", optimizer=optimizer, master_weights=master):
            layer(torch.ones(1, 1)).sum().backward()
            optimizer.step()
        assert (layer.weight.item() != 1.0) is moves


def test_an_optimizer_that_was_not_given_passes_and_the_run_says_so():
    model, (x, y) = network(), images()
    optimizer = sgd(model)
    with simulate(model, "fp16") as run:
        train_step(model, optimizer, x, y)
    assert any("optimizer" in note for note in run.notes)
    assert "optimizer" not in {site.direction for site in run.ledger}
    assert run.step == 1


def test_running_statistics_are_kept_wide_and_cast_on_use():
    model, (x, _) = network(), images()
    with simulate(model, "e5m2") as run:
        model(x)
        model.eval()
        model(x)
    stored = model.blocks[0].norm.running_var
    assert not torch.equal(stored, cast(stored, "e5m2"))
    assert run.ledger[Site("blocks.0.norm", "running_var")].count


def test_gradients_of_one_machine_for_everything_accumulate_at_their_parameters_module():
    model, (x, y) = network(), images()
    with simulate(model, "uniform:fp16") as run:
        for _ in range(2):
            nn.functional.cross_entropy(model(x), y).backward()
    assert run.ledger[Site("stem", "add", "backward")].count == sum(p.numel() for p in model.stem.parameters())
