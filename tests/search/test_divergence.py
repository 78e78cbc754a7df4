"""`diff`: the first operation where two runs of one network part, and by how much."""

import json

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.__main__ import main
from normstab.search import diff
from normstab.search.divergence import compare_digests
from normstab.simulation.site_digests import Digest, digests_of

FP32 = ns.Precision.parse("fp32")


class Net(nn.Module):
    """Linear, one of our norms, a square, a linear."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16, bias=False), ns.BatchNorm1d(16, norm="l1"), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).square())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


def mean(y):
    return y.mean()


def test_equal_runs_have_equal_results(net, x):
    found = diff(net, (x,), precision="fp32", against="native", loss=mean)
    assert all(site.is_equal for site in found.sites)
    assert found.first is None


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp16/stochastic"])
def test_what_rounding_explains_is_no_divergence(net, x, precision):
    found = diff(net, (x,), precision=precision, loss=mean)
    assert found.first is None
    forward = [site.site for site in found.sites if site.site.endswith("[forward]")]
    assert forward[:2] == ["first.mm[forward]", "norm.norm[forward]"]
    assert "norm.norm[backward]" in [site.site for site in found.sites]
    assert sum(site.difference > 0 for site in found.sites) > 4


def test_the_first_overflow_is_the_first_divergence(net, x):
    with torch.no_grad():
        net.norm.weight.fill_(300.0)
    found = diff(net, (x,), precision="fp16", loss=mean)
    assert found.first.site.endswith("pow[forward]")
    assert found.first.nonfinite[0] > 0 and found.first.nonfinite[1] == 0
    assert found.diverged[0] == found.first


def test_a_narrow_accumulator_parts_where_its_sum_is(x):
    net = nn.Sequential(nn.Linear(512, 4), nn.Tanh())
    found = diff(net, (1 + torch.rand(8, 512),), precision="fp16;matmul=fp16:sequential")
    assert found.first.site == "0.addmm[forward]"
    assert diff(net, (1 + torch.rand(8, 512),), precision="fp16").first is None


def test_two_passes_compare_by_digests_alone(net, x):
    def run(model):
        model(x)

    plain = [digest.to_json() for digest in digests_of(net, run, "fp32")]
    before = [Digest.from_json(json.loads(json.dumps(each))) for each in plain]
    with torch.no_grad():
        net.last.weight[0, 0] += 1.0
    after = digests_of(net, run, "fp32")
    found = compare_digests(before, after, labels=("before", "after"), precisions=(FP32, FP32))
    assert found.first.site == "last.addmm[forward]"
    assert [site.is_equal for site in found.sites][:-1] == [True] * (len(found.sites) - 1)
    shorter = compare_digests(before[:-1], after, labels=("before", "after"), precisions=(FP32, FP32))
    assert shorter.first.only == "B"


def test_the_command_lists_the_sites_in_order(tmp_path, monkeypatch, capsys):
    (tmp_path / "parted.py").write_text(
        "from torch import nn\nclass Square(nn.Module):\n    def forward(self, x): return (x * x).sqrt() + 0 * x\n"
    )
    monkeypatch.chdir(tmp_path)
    line = ["diff", "--check", "parted:Square", "--input", "4x8:float32:300..400", "--against", "fp32"]
    assert main([*line, "--precision", "fp16", "--out", "out", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["first"] == answer["diverged"][0]
    assert answer["first"]["site"].endswith("mul[forward]")
    assert answer["first"]["difference"] is None
    assert [site["site"] for site in answer["sites"]].index(answer["first"]["site"]) == 0
    assert "inf or NaN" in (tmp_path / "out" / "diff.md").read_text()
    assert "<table>" in (tmp_path / "out" / "diff.html").read_text()
    assert main([*line, "--precision", "bf16"]) == 0
    assert "differs by more than rounding explains" in capsys.readouterr().out
    assert main([*line, "--precision", "fp17"]) == 2
    assert main(["diff", "--check", "parted:Square"]) == 2
