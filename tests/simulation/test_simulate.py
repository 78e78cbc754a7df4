"""simulate: what it rounds, what it leaves as it was, and that it ends cleanly."""

import contextlib
import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

import normstab.simulation
from normstab.errors import NormstabError
from normstab.numerics.ledger import First, Ledger, Site
from normstab.simulation import simulate
from tests.simulation.networks import Network, images, network, sgd, tokens, train_step


def in_format(x: torch.Tensor) -> bool:
    return torch.equal(x, x.half().float())


def test_every_activation_and_gradient_is_in_the_format():
    model, (x, y) = network(), images()
    seen = []

    def watch(module, args, output):
        seen.append(output.detach().clone())
        output.register_hook(lambda grad: seen.append(grad.clone()))

    for module in model.modules():
        module.register_forward_hook(watch)
    with simulate(model, "fp16") as run:
        functional.cross_entropy(model(x), y).backward()
    assert len(seen) > 20
    assert all(in_format(value) for value in seen)
    assert all(in_format(p.grad) for p in model.parameters())
    assert not run.unrecognised


def test_nothing_is_unrecognised_with_an_optimizer_that_is_given():
    model, (x, y) = network(), images()
    optimizer = sgd(model)
    with simulate(model, "bf16", optimizer=optimizer) as run:
        train_step(model, optimizer, x, y)
    assert not run.unrecognised
    assert run.step == 1
    assert {site.direction for site in run.ledger} == {"forward", "backward", "optimizer"}


def test_attention_tied_weights_and_embeddings_are_understood():
    model, text = tokens()
    optimizer = sgd(model)
    with simulate(model, "fp16", optimizer=optimizer) as run:
        train_step(model, optimizer, text, text)
    assert not run.unrecognised
    assert run.ledger["embedding.weight"].count == 11 * 8, "a tied weight is cast once"


def test_sites_carry_the_users_module_names_in_both_directions():
    model, (x, y) = network(), images()
    with simulate(model, "fp16") as run:
        functional.cross_entropy(model(x), y).backward()
    for site in (
        Site("", "input"),
        Site("stem", "weight"),
        Site("stem", "convolution"),
        Site("stem", "convolution_backward.weight", "backward"),
        Site("blocks.0.norm", "square"),
        Site("blocks.0.norm", "divide", "backward"),
        Site("blocks.1", "add"),
        Site("head", "addmm"),
        Site("head", "mm", "backward"),
        Site("(outside)", "nll_loss_forward"),
        Site("(outside)", "_log_softmax_backward_data", "backward"),
    ):
        assert site in run.ledger, site
    assert run.ledger[Site("", "input")].count == x.numel()


def test_parameters_keep_their_values_and_are_cast_once_per_step():
    model, (x, _) = network(), images()
    before = copy.deepcopy(model.state_dict())
    model.eval()
    with simulate(model, "fp16") as run:
        model(x)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert run.ledger["stem.weight"].count == model.stem.weight.numel()
    with simulate(model, "fp16") as run:
        model(x), model(x)
    assert run.ledger["stem.weight"].count == 2 * model.stem.weight.numel(), "without optimizer each forward is a step"


def test_a_linear_layer_uses_the_rounded_weight():
    layer = nn.Linear(3, 2, bias=False)
    x = torch.eye(3)
    with simulate(layer, "e4m3fn"):
        y = layer(x)
    assert torch.equal(y, layer.weight.detach().to(torch.float8_e4m3fn).float().T)


def test_native_equals_plain_torch_bit_for_bit():
    x, y = images()
    plain, simulated = network(), network()
    plain_step, simulated_step = sgd(plain), sgd(simulated)
    with simulate(simulated, "native", optimizer=simulated_step) as run:
        losses = [train_step(simulated, simulated_step, x, y) for _ in range(3)]
    assert losses == [train_step(plain, plain_step, x, y) for _ in range(3)]
    assert len(run.ledger) == 0
    assert run.step == 3


def test_fp32_training_is_close_to_plain_torch():
    x, y = images()
    plain, simulated = network(), network()
    with simulate(simulated, "fp32", optimizer=(simulated_step := sgd(simulated))):
        ours = [train_step(simulated, simulated_step, x, y) for _ in range(3)]
    plain_step = sgd(plain)
    torch.testing.assert_close(ours, [train_step(plain, plain_step, x, y) for _ in range(3)], rtol=1e-4, atol=1e-5)


def test_a_float32_model_in_fp64_keeps_its_dtype_and_the_run_says_so():
    model, (x, y) = network(), images()
    with simulate(model, "fp64") as run:
        found = model(x)
        functional.cross_entropy(found, y).backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network()(x), rtol=1e-5, atol=1e-6)
    assert any("double" in note for note in run.notes)
    assert not run.unrecognised


def test_after_the_block_everything_is_as_before():
    model, (x, _) = network(), images()
    model.eval()
    expected = model(x)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with simulate(model, "e2m1"):
        rounded = model(x)
    assert not torch.equal(rounded, expected)
    assert torch.equal(model(x), expected)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert torch._C._len_torch_dispatch_stack() == 0


def test_an_exception_leaves_nothing_behind():
    class Broken(Network):
        def forward(self, x):
            self.stem(x)
            raise KeyError("broken")

    model, (x, _) = Broken(), images()
    with pytest.raises(KeyError, match="broken"), simulate(model, "fp16"):
        model(x)
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_caught_exception_does_not_misplace_what_follows():
    class Fragile(Network):
        def forward(self, x):
            with contextlib.suppress(RuntimeError):
                self.stem(x[:, :, 0])  # the wrong shape
            return super().forward(x)

    model, (x, _) = Fragile(), images()
    with simulate(model, "fp16") as run:
        model(x) * 2
    assert Site("(outside)", "mul") in run.ledger
    assert Site("blocks.0.conv1", "convolution") in run.ledger


def test_an_optimizer_that_raises_does_not_end_the_simulation():
    model, (x, y) = network(), images()
    optimizer = sgd(model)
    with simulate(model, "fp16") as run:
        functional.cross_entropy(model(x), y).backward()
        del optimizer.param_groups[0]["lr"]
        with pytest.raises(KeyError):
            optimizer.step()
        count = run.ledger["head.addmm"].count
        model(x)
        assert run.ledger["head.addmm"].count > count


def test_the_inner_of_two_nested_simulations_rules():
    model, (x, _) = network(), images()
    model.eval()
    with simulate(model, "e5m2") as outer:
        first = model(x)
        with simulate(model, "fp16") as inner:
            middle = model(x)
        with simulate(model, "native"):
            plain = model(x)
        assert torch.equal(model(x), first)
    with simulate(model, "fp16"):
        assert torch.equal(model(x), middle)
    assert torch.equal(model(x), plain)
    assert outer.ledger["stem.convolution"].count == 2 * inner.ledger["stem.convolution"].count


def test_two_threads_simulate_without_seeing_each_other():
    (x, y), results = images(), {}

    def work(precision: str, model) -> None:
        optimizer = sgd(model)
        with simulate(model, precision, optimizer=optimizer) as run:
            results[precision] = [train_step(model, optimizer, x, y) for _ in range(2)], dict(run.ledger), run.step

    # Made here: they are drawn from torch's global generator.
    threads = [threading.Thread(target=work, args=(precision, network())) for precision in ("fp16", "bf16")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(results)
    for precision in ("fp16", "bf16"):
        work(precision, network())
        assert results[precision] == together[precision]


def test_a_model_that_runs_in_another_thread_is_noted():
    model, (x, _) = network(), images()
    with simulate(model, "fp16") as run:
        thread = threading.Thread(target=model, args=(x,))
        thread.start()
        thread.join()
    assert any("thread" in note for note in run.notes)
    assert "stem.convolution" not in {site.path for site in run.ledger}


def test_a_copy_made_inside_is_a_plain_model_afterwards():
    model, (x, _) = network(), images()
    model.eval()
    with simulate(model, "e5m2"):
        twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))


def test_stochastic_rounding_repeats_with_its_seed_and_leaves_torchs_generator_alone():
    x, y = images()
    results = []
    for seed in (1, 1, 2):
        model = network()
        state = torch.get_rng_state()
        with simulate(model, "bf16/stochastic", optimizer=(optimizer := sgd(model)), seed=seed):
            for _ in range(2):
                train_step(model, optimizer, x, y)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(model.head.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_rounding_does_not_change_what_dropout_draws():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 64))
    x = torch.ones(8, 64)
    torch.manual_seed(3)
    expected = model[0](x) == 0
    torch.manual_seed(3)
    with simulate(model, "fp16/stochastic"):
        found = model[0](x) == 0
    assert torch.equal(found, expected)


def test_the_step_advances_with_the_optimizer_else_with_each_forward_of_the_root():
    model, (x, y) = network(), images()
    with simulate(model, "fp16") as run:
        for expected in range(3):
            model(x)
            assert run.step == expected
    optimizer = sgd(model)
    with simulate(model, "fp16", optimizer=optimizer) as run:
        for expected in range(3):
            assert run.step == expected
            model(x)
            train_step(model, optimizer, x, y)


def test_a_ledger_can_be_continued_and_first_names_site_and_step():
    ledger = Ledger()
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([300.0])
    for _ in range(2):
        with simulate(model, "fp16", ledger=ledger) as run:
            model(x) ** 2
    assert run.ledger is ledger
    assert ledger["(outside).pow"].overflow == 2
    assert run.first("overflow") == First(Site("(outside)", "pow"), 0)


def test_rules_give_modules_their_own_precision():
    model, (x, _) = network(), images()
    rules = {"stem": "native", r"re:blocks\.\d\.conv1": "e5m2", "blocks.1": "fp32", "_default": "fp16"}
    with simulate(model, "bf16", rules=rules) as run:
        model(x)
    modules = {site.module for site in run.ledger}
    assert "stem" not in modules
    assert run.arithmetic.precision.compute.name == "fp16"
    with (
        pytest.raises(NormstabError, match="no module 'stm'; did you mean 'stem'"),
        simulate(model, "fp16", rules={"stm": "fp32"}),
    ):
        pass


def test_report_names_the_first_overflow_and_its_line():
    class Square(nn.Module):
        def forward(self, x):
            return x * x

    model = nn.Sequential(Square())
    with simulate(model, "fp16") as run:
        model(torch.tensor([300.0, 1e-5]))
    text = run.report()
    assert "overflow" in text and "0.mul[forward]" in text and "test_simulate.py:" in text
    assert run.ledger["0.mul"].overflow == 1 and run.ledger["0.mul"].underflow == 1


def test_package_exports_are_sorted():
    assert list(normstab.simulation.__all__) == sorted(normstab.simulation.__all__)
