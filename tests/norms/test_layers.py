"""The layers against torch and against finite differences, where nothing is rounded: `native` and `fp64`."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from normstab.errors import NormstabError
from normstab.norms import modules as norms
from normstab.norms.catalogue import NORMS
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger

PAIRS = {
    "batch1d": (norms.BatchNorm1d, nn.BatchNorm1d, (6,), (7, 6)),
    "batch1d_long": (norms.BatchNorm1d, nn.BatchNorm1d, (6,), (4, 6, 5)),
    "batch2d": (norms.BatchNorm2d, nn.BatchNorm2d, (6,), (4, 6, 3, 5)),
    "batch3d": (norms.BatchNorm3d, nn.BatchNorm3d, (6,), (2, 6, 3, 2, 2)),
    "instance1d": (norms.InstanceNorm1d, nn.InstanceNorm1d, (6,), (4, 6, 15)),
    "instance2d": (norms.InstanceNorm2d, nn.InstanceNorm2d, (6,), (4, 6, 3, 5)),
    "instance3d": (norms.InstanceNorm3d, nn.InstanceNorm3d, (6,), (4, 6, 3, 2, 2)),
    "layer": (norms.LayerNorm, nn.LayerNorm, ((3, 5),), (4, 6, 3, 5)),
    "group": (norms.GroupNorm, nn.GroupNorm, (2, 6), (4, 6, 3, 5)),
    "rms": (norms.RMSNorm, nn.RMSNorm, ((3, 5),), (4, 6, 3, 5)),
}
OPTIONS = {"instance": {"affine": True, "track_running_stats": True}}


def build(pair: str, dtype: torch.dtype, **ours: object) -> tuple[nn.Module, nn.Module, Tensor]:
    """Return our layer, torch's with the same parameters, and an input."""
    our, theirs, arguments, shape = PAIRS[pair]
    options = next((found for name, found in OPTIONS.items() if pair.startswith(name)), {})
    torch.manual_seed(len(pair))
    ours_built, torch_built = our(*arguments, **options, **ours).to(dtype), theirs(*arguments, **options).to(dtype)
    for mine, its in zip(ours_built.parameters(), torch_built.parameters(), strict=True):
        values = torch.randn_like(mine)
        mine.data.copy_(values)
        its.data.copy_(values)
    return ours_built, torch_built, torch.randn(shape, dtype=dtype) * 2 + 3


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output, every gradient, and every buffer after two training steps and an evaluation."""
    found = []
    for step in range(3):
        layer.train(step < 2)
        layer.zero_grad()
        leaf = (x * (step + 1)).requires_grad_()
        z = layer(leaf)
        (z * torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view_as(z)).sum().backward()
        found += [z.detach(), leaf.grad, *(p.grad.clone() for p in layer.parameters())]
    return [*found, *(b.clone() for b in layer.buffers())]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("precision", ["native", "fp64"])
def test_l2_equals_torchs_own_layer_in_float64(pair: str, precision: str) -> None:
    ours, theirs, x = build(pair, torch.float64)
    ours.arithmetic = Arithmetic(precision)
    for found, expected in zip(run(ours, x), run(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
def test_native_l2_is_torchs_own_layer_bit_for_bit_in_float32(pair: str) -> None:
    ours, theirs, x = build(pair, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(run(ours, x), run(theirs, x), strict=True))


@pytest.mark.parametrize("pair", PAIRS)
def test_fp32_l2_equals_torchs_own_layer_to_float32_round_off(pair: str) -> None:
    ours, theirs, x = build(pair, torch.float32)
    ours.arithmetic = Arithmetic("fp32")
    for found, expected in zip(run(ours, x), run(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pair", ["batch2d", "layer", "group", "instance2d", "rms"])
@pytest.mark.parametrize("precision", ["native", "fp64"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_every_gradient_passes_gradcheck(norm: str, pair: str, precision: str, eps: float) -> None:
    layer, _, x = build(pair, torch.float64, norm=norm)
    layer.eps = eps
    layer.arithmetic = Arithmetic(precision)
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (x[:3, :4] if pair == "layer" else x[:2]).clone().requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    for training in (True, False):
        layer.train(training)
        assert torch.autograd.gradcheck(function, (inputs, *parameters), fast_mode=True)


@pytest.mark.parametrize("precision", ["native", "fp64"])
def test_mean_only_batch_norm_subtracts_the_mean_and_passes_gradcheck(precision: str) -> None:
    layer = norms.MeanOnlyBatchNorm2d(3, dtype=torch.float64)
    layer.arithmetic = precision
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    layer.bias.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    expected = x - x.mean((0, 2, 3), keepdim=True) + layer.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean((0, 2, 3)))
    assert torch.autograd.gradcheck(layer, x)
    assert set(layer.state_dict()) == {"bias", "running_mean", "num_batches_tracked"}
    layer.eval()
    torch.testing.assert_close(layer(x), x - (layer.running_mean - layer.bias).view(1, -1, 1, 1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", [128, 1024])
def test_gaussian_values_give_the_published_scale(norm: str, n: int) -> None:
    # Mean of s / sigma and its standard deviation over channels.
    table = {
        ("l1", 128): (0.996, 0.066), ("linf", 128): (1.396, 0.194), ("top10", 128): (1.057, 0.080),
        ("range", 128): (1.666, 0.193), ("l1", 1024): (0.9995, 0.023), ("linf", 1024): (1.426, 0.139),
        ("top10", 1024): (1.194, 0.056), ("range", 1024): (1.745, 0.135),
    }  # fmt: skip
    if (norm, n) not in table:
        pytest.skip("the table has the norms with a constant")
    torch.manual_seed(n)
    channels = 256
    layer = norms.BatchNorm1d(channels, norm=norm, momentum=1.0, eps=0.0, dtype=torch.float64)
    layer(torch.randn(n, channels, dtype=torch.float64))
    mean, deviation = table[norm, n]
    assert abs(float(layer.running_var.mean()) - mean) <= 3 * deviation / math.sqrt(channels) + 0.002


@pytest.mark.parametrize("norm", NORMS)
def test_momentum_none_is_the_cumulative_mean_of_all_batches(norm: str) -> None:
    layer = norms.BatchNorm1d(2, norm=norm, momentum=None, dtype=torch.float64)
    single = norms.BatchNorm1d(2, norm=norm, momentum=1.0, dtype=torch.float64)
    stored = []
    for seed in range(3):
        x = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        layer(x)
        single(x)
        stored.append(single.running_var.clone())
    torch.testing.assert_close(layer.running_var, torch.stack(stored).mean(0))
    assert int(layer.num_batches_tracked) == 3


@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_uses_the_stored_statistics_whatever_the_grad_mode(norm: str) -> None:
    layer = norms.BatchNorm1d(3, norm=norm, momentum=1.0, dtype=torch.float64, eps=1e-5)
    x = torch.randn(64, 3, dtype=torch.float64) * 3 + 1
    trained = layer(x)
    layer.eval()
    # l2 stores the unbiased variance, so evaluation differs from training by the factor sqrt(n / (n - 1)).
    factor = math.sqrt(63 / 64) if norm == "l2" else 1.0
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(layer(x), trained * factor, rtol=1e-5, atol=0)


def test_the_state_dict_has_torchs_keys_and_loads_into_torchs_layer() -> None:
    for pair in PAIRS:
        ours, theirs, _ = build(pair, torch.float32, norm="l1")
        theirs.load_state_dict(ours.state_dict())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert isinstance(ours, type(theirs))


def test_a_copied_and_a_pickled_layer_computes_the_same() -> None:
    layer = norms.BatchNorm2d(3, norm="l1")
    layer.arithmetic = Arithmetic("fp16", ledger=Ledger()).at("bn1")
    x = torch.randn(2, 3, 4, 4)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert other.norm == "l1"
        assert str(other.arithmetic.precision) == str(layer.arithmetic.precision)
        assert other.arithmetic.site == "bn1"


def test_a_layer_of_half_tensors_returns_half_tensors() -> None:
    layer = norms.BatchNorm2d(3, norm="l1")
    for dtype, precision in ((torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float16, "native")):
        layer.arithmetic = precision
        x = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=True)
        z = layer(x)
        z.float().sum().backward()
        assert z.dtype == x.grad.dtype == dtype


def test_a_dtype_that_cannot_hold_the_format_is_a_type_error() -> None:
    layer = norms.LayerNorm(8)
    layer.arithmetic = "bf16"
    with pytest.raises(TypeError, match="float16 tensor cannot hold bf16"):
        layer(torch.randn(2, 8, dtype=torch.float16))


def test_one_value_per_channel_raises_natively_as_in_torch_and_runs_emulated() -> None:
    for norm in NORMS:
        layer = norms.BatchNorm1d(3, norm=norm if norm != "top10" else "top1")
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.randn(1, 3))
        layer.arithmetic = "fp16"
        x = torch.randn(1, 3, requires_grad=True)
        z = layer(x)
        z.sum().backward()
        assert torch.equal(z, torch.zeros(1, 3))
        assert x.grad.isfinite().all()


def test_wrong_input_is_answered_with_what_was_found_and_what_is_allowed() -> None:
    with pytest.raises(NormstabError, match="did you mean 'linf'"):
        norms.BatchNorm2d(3, norm="linff")
    with pytest.raises(ValueError, match="expected 4D input"):
        norms.BatchNorm2d(3, norm="l1")(torch.randn(2, 3))
    with pytest.raises(NormstabError, match="weight has 3 channels, the input has 4"):
        norms.BatchNorm2d(3, norm="l1")(torch.randn(2, 4, 2, 2))
    with pytest.raises(NormstabError, match=r"top10.*only 8"):
        norms.BatchNorm2d(3, norm="top10")(torch.randn(2, 3, 2, 2))
    with pytest.raises(NormstabError, match=r"layer norm over \(5,\): found an input of shape \(2, 4\)"):
        norms.LayerNorm(5, norm="l1")(torch.randn(2, 4))
    with pytest.raises(NormstabError, match="eps is zero or positive"):
        norms.LayerNorm(5, norm="l1", eps=-1.0)(torch.randn(2, 5))
    with pytest.raises(NormstabError, match="norm 'l2' has none"):
        norms.BatchNorm2d(3, norm_constant=4.0)
    with pytest.raises(NormstabError, match="positive factor"):
        norms.BatchNorm2d(3, norm="l1", norm_constant=0.0)


def test_a_larger_norm_constant_divides_the_output() -> None:
    x = torch.randn(64, 3, dtype=torch.float64)
    plain, fourfold = (norms.BatchNorm1d(3, norm="l1", norm_constant=c, eps=0.0).double() for c in (1.0, 4.0))
    torch.testing.assert_close(fourfold(x) * 4, plain(x))
    assert "norm_constant=4" in repr(fourfold)


def test_a_pickled_layer_counts_in_a_ledger_of_its_own() -> None:
    layer = norms.BatchNorm2d(3, norm="l1")
    ledger = Ledger()
    layer.arithmetic = Arithmetic("fp16", ledger=ledger).at("bn1")
    layer(torch.randn(2, 3, 4, 4))
    other = pickle.loads(pickle.dumps(layer))
    other(torch.randn(2, 3, 4, 4))
    assert ledger["bn1.centre"].count == 96
    assert other.arithmetic.ledger["bn1.centre"].count == 192
