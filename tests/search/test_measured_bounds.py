"""`bounds`: every sum, product, softmax and norm of a network beside its bound."""

import json

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.__main__ import main
from normstab.errors import NormstabError
from normstab.search import bounds


class Net(nn.Module):
    """One of each operation that has a bound."""

    def __init__(self, norm="l2"):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.own, self.ln, self.fc = ns.BatchNorm2d(4, norm=norm), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        h = self.own(self.bn(self.conv(x)))
        return torch.softmax(self.fc(self.ln(h.flatten(1))), -1) + h.mean() + h.sum(1).amax()


@pytest.fixture
def x():
    return torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def square(y):
    return y.square().mean()


@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "top10"])
@pytest.mark.parametrize("precision", ["fp16", "bf16/stochastic/bf16:pairwise;matmul=bf16:blocked8"])
def test_every_operation_that_adds_up_stands_beside_its_bound(x, norm, precision):
    found = bounds(Net(norm), (x,), precision=precision, loss=square)
    at = {(site.site, site.operation): site for site in found.sites}
    expected = {
        ("conv.convolution[forward]", "convolution"): 18,
        ("bn.native_batch_norm[forward]", "mean of a norm"): 24,
        ("bn.native_batch_norm[forward]", "l2 scale of a norm"): 24,
        ("own.norm[forward]", f"{norm} scale of a norm"): 24,
        ("ln.native_layer_norm[forward]", "l2 scale of a norm"): 16,
        ("fc.addmm[forward]", "product"): 16,
        ("(root)._softmax[forward]", "softmax"): 5,
    }
    expected = {key: n for key, n in expected.items() if not key[0].startswith("(root)")}
    assert {key: at[key].n for key in expected} == expected
    operations = {site.operation for site in found.sites}
    assert {"sum", "mean", "softmax", "product", "convolution gradient of weight"} <= operations
    assert found.violations == ()
    assert all(0.0 <= site.ratio <= 1.0 and site.measured <= site.bound for site in found.sites)
    assert sum(site.measured > 0 for site in found.sites) > 8


def test_the_network_is_left_as_it_is(x):
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bounds(net, (x,), precision="fp16", loss=square)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_results_that_overflow_are_beyond_every_bound():
    found = bounds(nn.BatchNorm1d(3), (1000 * torch.randn(64, 3),), precision="fp16")
    scale = next(site for site in found.sites if site.operation == "l2 scale of a norm")
    assert scale.beyond == scale.results
    assert found.violations == ()


def test_a_sum_that_is_wrong_violates_its_bound(x, monkeypatch):
    from normstab.search import bound_cases

    monkeypatch.setattr(bound_cases, "sum_steps", lambda *args: [])
    found = bounds(Net(), (x,), precision="fp16")
    assert {site.operation for site in found.violations} == {"sum"}


@pytest.mark.parametrize("precision", ["native", "fp16;operand=e4m3fn@row", "amp-bf16"])
def test_a_precision_without_bounds_is_refused(x, precision):
    with pytest.raises(NormstabError, match="bound"):
        bounds(Net(), (x,), precision=precision)


def test_the_command_prints_the_table_and_writes_the_report(tmp_path, monkeypatch, capsys):
    (tmp_path / "bounded.py").write_text("from torch import nn\ndef build(): return nn.Linear(8, 3)\n")
    monkeypatch.chdir(tmp_path)
    assert main(["bounds", "bounded:build", "--input", "4x8", "--precision", "fp16", "--out", "out", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["violations"] == 0
    assert answer["sites"][0]["n"] == 8
    assert "![bounds](plots/bounds.svg)" in (tmp_path / "out" / "report.md").read_text()
    assert main(["bounds", "bounded:build", "--input", "4x8", "--precision", "fp16"]) == 0
    assert "no deterministic bound is exceeded" in capsys.readouterr().out
    assert main(["bounds", "bounded:build", "--input", "4x8", "--precision", "native"]) == 2
    assert main(["bounds", "bounded:build", "--input", "4x8", "--failure", "2"]) == 2
