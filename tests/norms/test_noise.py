"""Noise in the place of rounding: its moments against derived bounds, its keys, and where it is added."""

import copy
import math

import pytest
import torch

import normstab as ns
from normstab.norms.noise.perturbation import (
    disturbed,
    halving_sum,
    noise_of,
    quantum,
    uniform_by_torch,
    uniform_fields,
)
from normstab.numerics.philox import Key, random_fields

CPU = torch.device("cpu")
N = 2**18
KINDS = ("uniform", "multiplicative")
WHERE = ("output", "statistics", "gradient")


def gaussian(n=N, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def keyed(layer, noise, *, seed=0, site="bn1", step=0):
    layer.arithmetic = ns.Arithmetic("native", key=ns.Key(seed, step=step)).at(site)
    layer.norm_noise = noise
    return layer


def batch_norm(noise, *, norm="l2", **key):
    return keyed(ns.BatchNorm2d(4, norm=norm), noise, **key)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 1003])
@pytest.mark.parametrize("key", [Key(3, "bn", 7), Key(2**64 - 1, "x", 2**63 + 9)])
def test_the_uniform_numbers_are_those_of_the_documented_fields(key, n):
    odd = 2 * random_fields(key.draw, torch.arange(n), 24) + 1 - 2**24
    expected = (odd.double() / 2**25).float()
    assert torch.equal(uniform_fields(key.draw, n, device=CPU), expected)
    assert torch.equal(uniform_by_torch(key.draw, n, CPU), expected)


def within_four_errors(samples, mean, variance, kurtosis):
    """Mean and variance of independent samples lie within four standard errors: sd/sqrt(n), var sqrt((k-1)/n)."""
    n = samples.numel()
    assert abs(samples.mean().item() - mean) <= 4 * math.sqrt(variance / n)
    assert abs(samples.var().item() - variance) <= 4 * variance * math.sqrt((kurtosis - 1) / n)


UNIFORM_KURTOSIS = 9 / 5


@pytest.mark.parametrize("strength", [{"sigma": 0.1}, {"like": "q6.9"}, {"like": "u8.4"}])
def test_uniform_noise_has_mean_zero_and_the_variance_it_states(strength):
    added = noise_of(gaussian(), ns.NormNoise("uniform", **strength), Key(1, "a").draw).double()
    q = {"q6.9": 2.0**-9, "u8.4": 2.0**-4}.get(strength.get("like"), math.sqrt(12) * 0.1)
    within_four_errors(added, 0.0, q * q / 12, UNIFORM_KURTOSIS)
    assert added.abs().max() < q / 2 * (1 + 2**-23)


def test_a_multiplicative_factor_has_mean_one_and_the_variance_it_states():
    t = gaussian()
    zeta = noise_of(t, ns.NormNoise("multiplicative", sigma=0.1), Key(1, "a").draw).double() / t.double()
    within_four_errors(zeta, 0.0, 0.01, UNIFORM_KURTOSIS)


@pytest.mark.parametrize("like", ["q6.9", "q11.4", "fp16", "bf16", "e4m3fn"])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_like_a_format_has_the_power_of_rounding_to_it(kind, like):
    # The error of rounding a smooth density is uniform within half a quantum up to terms far below 1 % at these quanta
    # (Widrow and Kollar 2008, chapter 5). Squares of a noise q u, q in proportion to the binade of a Gaussian, have a
    # kurtosis of at most (9/5) 3 (4/3)^2 < 17; two independent means are compared.
    t = gaussian()
    rounding = ns.cast(t, like).double() - t.double()
    added = noise_of(t, ns.NormNoise(kind, like=like), Key(2, "a").draw).double()
    ratio = (added**2).mean() / (rounding**2).mean()
    assert abs(ratio - 1) <= 0.01 + 4 * math.sqrt(2 * 16 / N)


@pytest.mark.parametrize("format", ["fp16", "bf16", "e4m3fn", "fp16:flush", "q6.9"])
def test_the_quantum_is_the_distance_to_the_next_number_of_the_format(format):
    # From a number of the format up: adding the quantum gives a number of it, adding half of one does not.
    t = ns.cast(torch.cat([gaussian(4096) * 2.0**k for k in (-20, -8, -3, 0, 3)]), format)
    t = t[t.abs() < 60]
    q = quantum(t, ns.parse_format(format))
    up = t.double() + t.double().sign() * q.double()
    assert torch.equal(ns.cast(up, format), up)
    half = t.double() + t.double().sign() * q.double() / 2
    is_free = (t != 0) & (half.abs() > 2.0**-14 if "flush" in format else half == half)
    assert (ns.cast(half, format) != half)[is_free].all()


def test_the_quantum_of_float64_is_that_of_float32_where_both_have_the_value():
    t = gaussian(4096)
    for format in map(ns.parse_format, ("fp16", "e5m2", "q6.9")):
        assert torch.equal(quantum(t.double(), format).float(), quantum(t, format))


def on_threads(threads, function):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return function()
    finally:
        torch.set_num_threads(before)


def test_halving_sums_are_accurate_and_the_same_on_every_number_of_threads():
    x = gaussian(100_003).double()
    found = [on_threads(threads, lambda: halving_sum(x)) for threads in (1, 2)]
    assert found[0] == found[1]
    assert abs(found[0] - math.fsum(x.tolist())) <= 17 * 2**-53 * x.abs().sum()  # a tree of 17 levels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("like", ["q6.4", "fp16"])
def test_noise_is_the_same_on_every_number_of_threads(kind, like):
    noise, draw, t = ns.NormNoise(kind, like=like), Key(0, "a").draw, gaussian()
    one, two = (on_threads(threads, lambda: noise_of(t, noise, draw)) for threads in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", WHERE)
def test_the_same_key_gives_the_same_bits_and_another_site_step_or_seed_others(kind, where):
    noise = ns.NormNoise(kind, like="q6.4", where=where)
    x = gaussian(4 * 4 * 6 * 6).reshape(4, 4, 6, 6)

    def run(**key):
        layer, leaf = batch_norm(noise, **key), x.clone().requires_grad_()
        out = layer(leaf)
        (out * x).sum().backward()
        return torch.cat([out.detach().flatten(), leaf.grad.flatten()])

    first = run()
    assert torch.equal(run(), first)
    for other in ({"site": "bn2"}, {"step": 1}, {"seed": 1}):
        assert not torch.equal(run(**other), first)


def test_two_calls_in_one_step_differ_and_the_next_step_starts_again():
    layer = batch_norm(ns.NormNoise("uniform", like="q6.4"))
    x = torch.zeros(2, 4, 3, 3)
    calls = [layer(x) for _ in range(2)]
    assert not torch.equal(*calls)
    layer.arithmetic.clock.set(0)
    assert all(torch.equal(layer(x), before) for before in calls)


@pytest.mark.parametrize("where", WHERE)
def test_torchs_generators_are_neither_read_nor_advanced(where):
    noise = ns.NormNoise("multiplicative", sigma=0.1, where=where)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        x = torch.linspace(-2, 2, 4 * 4 * 9).reshape(4, 4, 3, 3).requires_grad_()
        (batch_norm(noise)(x) ** 3).sum().backward()
        assert torch.equal(torch.get_rng_state(), before)
        results.append(x.grad)
    assert torch.equal(*results)


def test_noise_follows_the_index_of_a_value_whatever_the_strides():
    noise = ns.NormNoise("uniform", sigma=0.1)
    x = gaussian(2 * 4 * 3 * 3).reshape(2, 4, 3, 3)
    ar = [ns.Arithmetic("native", key=ns.Key(0)).at("a") for _ in range(2)]
    plain, turned = (disturbed(t, noise, a, "output") for t, a in zip((x, x.mT.contiguous().mT), ar, strict=True))
    assert torch.equal(plain, turned)


@pytest.mark.parametrize("norm", [*ns.NORMS, "mean-only"])
@pytest.mark.parametrize("training", [True, False])
def test_noise_on_outputs_is_added_to_what_the_layer_gives_without_it(norm, training):
    layer = ns.MeanOnlyBatchNorm2d(4) if norm == "mean-only" else ns.BatchNorm2d(4, norm=norm)
    layer.train(training)
    x = gaussian(4 * 4 * 6 * 6).reshape(4, 4, 6, 6)
    without = copy.deepcopy(layer)(x)
    found = keyed(layer, ns.NormNoise("uniform", sigma=0.25))(x)
    added = noise_of(without, ns.NormNoise("uniform", sigma=0.25), Key(0, "bn1.noise.output[forward]").draw)
    assert torch.equal(found, without + added)


@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "top10", "range", "lp3"])
def test_noise_on_statistics_moves_what_values_are_normalized_by_and_not_what_is_stored(norm):
    x = gaussian(8 * 4 * 6 * 6).reshape(8, 4, 6, 6) + 1
    plain = ns.BatchNorm2d(4, norm=norm, affine=False)
    layer = keyed(ns.BatchNorm2d(4, norm=norm, affine=False), ns.NormNoise("uniform", sigma=0.05, where="statistics"))
    z, clean = layer(x), plain(x)
    draws = [Key(0, f"bn1.noise.{part}[forward]").draw for part in ("mean", "scale")]
    mean_noise, scale_noise = (noise_of(torch.ones(1, 4, 1), ns.NormNoise("uniform", sigma=0.05), d) for d in draws)
    x_NCV = x.flatten(2)
    mean = x_NCV.mean((0, 2), keepdim=True) + mean_noise
    # s is measured around the mean that is used, then disturbed.
    if norm == "l2":
        scale = ((x_NCV - mean) ** 2).mean((0, 2), keepdim=True).add(1e-5).sqrt() + scale_noise
        assert torch.allclose(z.flatten(2), (x_NCV - mean) / scale, atol=1e-5)
    assert not torch.allclose(z, clean, atol=1e-3)
    assert torch.allclose(layer.running_mean, plain.running_mean, atol=1e-6)


def test_noise_on_the_gradient_leaves_the_output_and_the_parameters_gradients_alone():
    x = gaussian(4 * 4 * 6 * 6).reshape(4, 4, 6, 6)
    gradients = []
    for noise in (None, ns.NormNoise("uniform", sigma=0.1, where="gradient")):
        layer, leaf = batch_norm(noise), x.clone().requires_grad_()
        out = layer(leaf)
        (out * x.flip(0)).sum().backward()
        gradients.append((out.detach(), layer.weight.grad, layer.bias.grad, leaf.grad))
    plain, noisy = gradients
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], noisy[:3], strict=True))
    draw = Key(0, "bn1.noise.gradient[backward]").draw
    assert torch.equal(noisy[3], plain[3] + noise_of(plain[3], ns.NormNoise("uniform", sigma=0.1), draw))


def test_noise_passes_gradients_as_a_constant_would():
    leaf = gaussian(64).reshape(4, 4, 2, 2).requires_grad_()
    plain = leaf.detach().clone().requires_grad_()
    (batch_norm(ns.NormNoise("multiplicative", sigma=0.5))(leaf) * 2).sum().backward()
    (batch_norm(None)(plain) * 2).sum().backward()
    assert torch.equal(leaf.grad, plain.grad)


def test_infinite_and_nan_values_pass_and_do_not_strengthen_the_noise_of_others():
    t = torch.tensor([1.0, math.inf, -math.inf, math.nan, 0.0])
    for kind in KINDS:
        ar = ns.Arithmetic("native", key=ns.Key(0)).at("a")
        found = disturbed(t, ns.NormNoise(kind, like="q6.4"), ar, "output")
        assert found[1:4].tolist()[:2] == [math.inf, -math.inf] and found[3].isnan()
        # |u| < 1/2; of two finite values, one of them 1, zeta has the width sqrt(2 q^2 / 1).
        assert abs(found[0] - 1) <= 2.0**-5 * math.sqrt(2) and abs(found[4]) <= 2.0**-5


def test_a_forward_that_is_recomputed_is_disturbed_as_it_was():
    from torch.utils.checkpoint import checkpoint

    noise = ns.NormNoise("multiplicative", sigma=0.1, where=["output", "statistics"])
    x = gaussian(4 * 4 * 6 * 6).reshape(4, 4, 6, 6)
    gradients = []
    for is_recomputed in (False, True):
        layer, leaf = batch_norm(noise, norm="l1"), x.clone().requires_grad_()
        net = torch.nn.Sequential(torch.nn.Tanh(), layer)
        out = checkpoint(net, leaf, use_reentrant=False) if is_recomputed else net(leaf)
        (out**2).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_every_kind_of_layer_is_disturbed(norm):
    noise = ns.NormNoise("uniform", sigma=0.5)
    x = gaussian(4 * 8 * 6).reshape(4, 8, 6)
    for layer in (ns.LayerNorm(6, norm=norm), ns.GroupNorm(2, 8, norm=norm), ns.RMSNorm(6, norm=norm)):
        without = layer(x)
        assert not torch.equal(keyed(layer, noise)(x), without)
        assert "norm_noise=uniform(sigma=0.5, where=output)" in repr(layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "unifrom", "sigma": 1.0}, "did you mean 'uniform'"),
        ({"kind": "uniform"}, "neither is given"),
        ({"kind": "uniform", "sigma": 1.0, "like": "fp16"}, "both are given"),
        ({"kind": "uniform", "sigma": -1.0}, "zero or positive, found -1.0"),
        ({"kind": "uniform", "sigma": math.nan}, "zero or positive, found nan"),
        ({"kind": "uniform", "like": "fp17"}, "fp16"),
        ({"kind": "uniform", "sigma": 1.0, "where": "outptu"}, "did you mean 'output'"),
        ({"kind": "uniform", "sigma": 1.0, "where": ()}, "names no place"),
    ],
)
def test_a_wrong_noise_is_told(arguments, message):
    with pytest.raises(ns.NormstabError, match=message):
        ns.NormNoise(**arguments)


def test_noise_without_a_key_or_in_a_layer_that_rounds_is_told():
    layer = ns.BatchNorm2d(4)
    layer.norm_noise = ns.NormNoise("uniform", sigma=1.0)
    with pytest.raises(ns.NormstabError, match="needs a key"):
        layer(torch.zeros(2, 4, 3, 3))
    with pytest.raises(ns.NormstabError, match="rounds nothing"):
        layer.arithmetic = "fp16"
    with pytest.raises(ns.NormstabError, match="norm_noise"):
        layer.norm_noise = "uniform"


def test_a_simulation_in_which_the_norm_rounds_nothing_gives_it_its_key_and_its_steps():
    noise = ns.NormNoise("uniform", sigma=0.1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), ns.BatchNorm1d(4))
    net[1].norm_noise = noise
    x = gaussian(32).reshape(8, 4)
    with ns.simulate(net, "fp16", rules={"1": "native"}, seed=3):
        first, second = net(x), net(x)
    with ns.simulate(net, "fp16", rules={"1": "native"}, seed=3):
        again = net(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    with pytest.raises(ns.NormstabError, match="rounds nothing"), ns.simulate(net, "fp16"):
        pass
