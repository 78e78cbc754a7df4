"""The network sees its precision's dtype, and explicit casts mean what they say; the oracle is torch's own half."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils import checkpoint

from normstab.numerics.ledger import Site
from normstab.numerics.rounding import cast
from normstab.simulation import simulate
from normstab.simulation.around.stored_operations import StoredOperations

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
BOTH = pytest.mark.parametrize("name", DTYPES)


class Code(nn.Module):
    """A module that runs a function of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def run(function, *args, precision="fp16"):
    model = Code(function)
    with simulate(model, precision) as found:
        result = model(*args)
    return result, found


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class WideNorm(nn.Module):
    """RMS norm in float32 by intent, as the transformers of Hugging Face have it."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, features))

    def forward(self, x):
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


@BOTH
def test_a_norm_computed_in_float32_by_intent_equals_torchs_half(name):
    model, x = WideNorm(8), 300 * normal(2, 8)
    half = copy.deepcopy(model).to(DTYPES[name])(x.to(DTYPES[name]))
    with simulate(model, name) as found:
        y = model(x)
    assert y.dtype == DTYPES[name] and torch.equal(y, half)
    assert float(y.detach().abs().max()) > 1.0
    assert found.ledger["to"].count == 16 and not found.ledger.total().overflow


@BOTH
def test_a_mask_of_the_least_finite_number_hides_and_makes_no_nan(name):
    def masked(x):
        mask = torch.full((4, 4), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        return (x + mask + mask).softmax(-1)

    y, _ = run(masked, normal(4, 4), precision=name)
    assert y.isfinite().all()
    half = masked(normal(4, 4).to(DTYPES[name]))
    assert torch.equal(y == 0, half == 0)
    torch.testing.assert_close(y, half)


@pytest.mark.parametrize("name", ["e4m3fn", "e4m3fnuz", "e5m2"])
def test_a_mask_beyond_a_narrow_formats_range_stays_a_mask(name):
    def masked(x):
        return x.masked_fill(torch.ones(3, 3).triu(1).bool(), torch.finfo(x.dtype).min)

    y, found = run(masked, torch.ones(3, 3), precision=name)
    assert y.dtype == torch.float16 and float(y.min()) == -found.arithmetic.format.max
    assert found.ledger["masked_fill.const"].overflow == 1


@BOTH
def test_code_reads_the_dtype_its_size_and_its_limits(name):
    seen = {}
    layer = nn.Linear(3, 3)
    layer.register_buffer("table", torch.arange(3.0))

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            seen["dtypes"] = {x.dtype, self.layer.weight.dtype, self.layer.table.dtype}
            seen["dtypes"] |= {
                next(self.parameters()).dtype,
                self.layer(x).dtype,
                torch.promote_types(x.dtype, x.dtype),
            }
            seen["size"], seen["default"] = x.element_size(), torch.get_default_dtype()
            seen["wide"] = {(x + torch.zeros(3)).dtype, torch.zeros(1).dtype, x.float().dtype}
            return self.layer(x)

    model = Reads()
    with simulate(model, name):
        y = model(normal(2, 3))
        assert layer.weight.dtype == torch.float32
    assert seen == {"dtypes": {DTYPES[name]}, "size": 2, "default": torch.float32, "wide": {torch.float32}}
    assert y.dtype == DTYPES[name]
    assert isinstance(layer.weight, nn.Parameter) and layer.table.dtype == torch.float32


def test_normalizing_zeros_is_nan_as_torchs_half_is_for_eps_vanishes():
    y, found = run(functional.normalize, torch.zeros(1, 4))
    assert y.isnan().all() and functional.normalize(torch.zeros(1, 4).half()).isnan().all()
    assert found.ledger["clamp_min.const"].underflow == 1


def test_a_bound_that_is_no_number_of_the_format_is_cast():
    y, found = run(lambda x: x.new_zeros(3).clamp_min(1e-8), torch.ones(1))
    assert torch.equal(y, torch.zeros(3).half())
    assert found.ledger["clamp_min.const"].underflow == 1


def test_a_whole_number_beyond_the_range_overflows_in_its_cast():
    y, found = run(lambda x: torch.tensor([70001, 3]).to(x.dtype), torch.ones(1))
    assert y.tolist() == [torch.inf, 3.0]
    assert found.ledger["to.const"].overflow == 1


@pytest.mark.parametrize(
    "fill",
    [
        lambda x: torch.full_like(x, 1e6),
        lambda x: x.new_full((2,), 1e6),
        lambda x: x.clone().fill_(1e6),
        lambda x: x.masked_fill(x > 0, 1e6),
        lambda x: x.clamp(max=1e6),
    ],
)
def test_a_fill_that_half_cannot_hold_raises_as_torch_does(fill):
    with pytest.raises(RuntimeError, match="without overflow"):
        fill(torch.ones(2).half())
    with pytest.raises(RuntimeError, match="without overflow"):
        run(fill, torch.ones(2))


@BOTH
def test_constants_are_counted_where_they_enter(name):
    doors = {
        "masked_fill": lambda x: x.masked_fill(x > 0, 1e-30),
        "where": lambda x: torch.where(x > 0, x, 1e-30),
        "constant_pad_nd": lambda x: functional.pad(x, (1, 1), value=1e-30),
        "full_like": lambda x: torch.full_like(x, 1e-30),
        "new_full": lambda x: x.new_full((2,), 1e-30),
        "index_fill": lambda x: x.index_fill(0, torch.tensor([0]), 1e-30),
        "threshold": lambda x: functional.threshold(x, 0.0, 1e-30),
        "hardtanh": lambda x: functional.hardtanh(x, -1.0, 1e-30),
        "fill": lambda x: x.clone().fill_(1e-30),
        "nan_to_num": lambda x: torch.nan_to_num(x, nan=1e-30),
    }
    for site, door in doors.items():
        y, found = run(door, torch.tensor([1.0, -1.0]), precision=name)
        assert torch.equal(y, door(torch.tensor([1.0, -1.0]).to(DTYPES[name])))
        assert found.ledger[f"{site}.const"].underflow == (name == "fp16"), site


@BOTH
def test_pointwise_code_of_casts_masks_and_gathers_equals_torchs_half_bit_for_bit(name):
    def code(x, i):
        h = x.float().cumsum(-1).to(x.dtype)
        h = torch.where(h > 0, h * x, -h) + x[i]
        h[0] = 0.1
        h = torch.cat([h, x.new_full((1, 6), 0.3)]).masked_fill(h.new_ones(6) > 2, 1.0)
        return (h / (x.abs().max() + 1)).clamp(-2, 2), h.float().mean()

    x, i = normal(5, 6), torch.tensor([4, 3, 2, 1, 0])
    found, _ = run(code, x, i, precision=name)
    for ours, theirs in zip(found, code(x.to(DTYPES[name]), i), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@BOTH
def test_training_equals_a_loop_of_half_copies_and_float32_masters(name):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))

    # Small whole numbers: every product and sum is exact, so that kernels cannot differ.
    x = torch.randint(-2, 3, (4, 4), generator=torch.Generator().manual_seed(1)).float()
    ours, masters = network(), network()
    for model in (ours, masters):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((p * 4).round() / 4)
    optimizer = torch.optim.SGD(ours.parameters(), lr=2.0**-12)
    with simulate(ours, name):
        for _ in range(3):
            optimizer.zero_grad()
            ours(x).sum().backward()
            optimizer.step()
    other = torch.optim.SGD(masters.parameters(), lr=2.0**-12)
    for _ in range(3):
        half = copy.deepcopy(masters).to(DTYPES[name])
        half(x.to(DTYPES[name])).sum().backward()
        for p, h in zip(masters.parameters(), half.parameters(), strict=True):
            p.grad = h.grad.float()
        other.step()
    for p, q in zip(ours.parameters(), masters.parameters(), strict=True):
        assert p.dtype == torch.float32 and torch.equal(p, q)


def test_micro_batches_add_up_in_float32():
    layer = nn.Linear(1, 1, bias=False)
    with simulate(layer, "fp16") as found:
        for value in (256.0, 0.125, 0.125):
            layer(torch.full((1, 1), value)).sum().backward()
    assert layer.weight.grad.item() == 256.25
    assert Site("", "add", "backward") not in found.ledger


def test_what_a_forward_writes_to_a_buffer_is_kept():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(2))
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x):
            self.seen += 1
            self.mean = 0.5 * self.mean + 0.5 * x
            return x

    model = Counts()
    with simulate(model, "fp16"):
        for _ in range(3):
            model(torch.tensor([1.0, 0.1]))
    assert torch.equal(model.seen, torch.full((2,), 3.0)) and model.seen.dtype == torch.float32
    assert model.mean.dtype == torch.float32 and torch.equal(model.mean, cast(model.mean, "fp16"))


def test_tied_and_recomputed_parameters_have_one_copy():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.block, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
            self.out.weight = self.into.weight

        def forward(self, i):
            return self.out(checkpoint.checkpoint(self.block, self.into(i), use_reentrant=False))

    torch.manual_seed(0)
    model, i = Tied(), torch.tensor([0, 3, 3])
    half = copy.deepcopy(model).half()
    half(i).float().square().mean().backward()
    with simulate(model, "fp16") as found:
        model(i).float().square().mean().backward()
    assert found.ledger["into.weight"].count == 20 and found.unrecognised == {}
    torch.testing.assert_close(model.into.weight.grad, half.into.weight.grad.float(), rtol=2e-2, atol=1e-4)


def test_a_module_with_a_wider_rule_computes_wide_and_what_leaves_it_is_cast_back():
    model = nn.Sequential(nn.Linear(2, 2), Code(lambda x: x.square().sum(-1) / 1e3), Code(lambda x: x * 1.0))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    x = torch.tensor([[300.0, 300.0]])
    with simulate(model, "fp16", rules={"1": "fp32"}):
        assert model(x).tolist() == [180.0]
    with simulate(model, "fp16") as found:
        assert model(x).isinf().all()
    assert found.first("overflow").site == Site("1", "pow")


@pytest.mark.parametrize(
    "name", ["e5m12", "e6m9", "e7m8", "e8m9", "e8m11:saturate", "e6m9;norm=wide", "fp16;gradient=e5m12"]
)
def test_formats_that_no_dtype_of_16_bits_holds_say_so_once(name):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with simulate(model, name) as found:
        for _ in range(2):
            assert model(torch.ones(1, 2)).dtype == torch.float32
    notes = [note for note in found.notes if "no 16-bit dtype holds every number of" in note]
    assert len(notes) == 1 and str(found.arithmetic.precision) in notes[0]
    assert found.report().count("no 16-bit dtype") == 1


@pytest.mark.parametrize("name", ["q7.8", "tf32", "fp32", "fp32:saturate", "fp64", "e5m12;casts=ignore", "native"])
def test_formats_that_are_float32_to_a_network_say_nothing_of_it(name):
    model = nn.Linear(2, 2)
    with simulate(model, name) as found:
        assert model(torch.ones(1, 2)).dtype == torch.float32
    assert not any("16-bit dtype" in note for note in found.notes)


def test_a_scaled_half_loss_is_float32_and_a_scale_beyond_half_is_halved_once():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with simulate(model, "fp16", loss_scale="dynamic") as run:
        for _ in range(2):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.ones(2, 4)), torch.tensor([0, 1]))
            scaled = run.scaler.scale(loss)
            assert (loss.dtype, scaled.dtype) == (torch.float16, torch.float32)
            assert scaled.item() == loss.item() * run.scaler.get_scale()
            scaled.backward()
            run.scaler.step(optimizer)
            run.scaler.update()
    assert (run.scaler.get_scale(), run.scaler.skipped_steps) == (2.0**15, 1)


def test_gradients_of_norms_and_attention_are_computed_once_and_in_the_network_s_dtype(monkeypatch):
    tried = []
    wide = StoredOperations._wide
    monkeypatch.setattr(
        StoredOperations, "_wide", lambda self, func, *rest: tried.append(func) or wide(self, func, *rest)
    )
    norms = [nn.LayerNorm(4), nn.GroupNorm(3, 3), nn.BatchNorm1d(3)]
    x = normal(2, 3, 4).requires_grad_()
    for norm in norms:
        with simulate(norm, "half"):
            norm(x).float().sum().backward()
    attention = Code(lambda x: functional.scaled_dot_product_attention(x, x, x))
    with simulate(attention, "half"):
        attention(x).float().sum().backward()
    assert x.grad.dtype == torch.float32 and not tried
