"""`diff`: the first operation where two runs of one network part, and by how much."""

import json

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.__main__ import main
from normstab.experiment.execution.executor import _Run
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario
from normstab.experiment.training.train_cell import run_cell
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


def test_a_compiled_network_of_the_same_operations_is_equal_throughout(net, x):
    found = diff(net, (x,), precision="fp16", against="fp16", loss=mean, compiled="none")
    assert found.label_b == f"{found.label_a} compiled"
    assert all(site.is_equal for site in found.sites) and len(found.sites) > 6
    assert any("graph break" in note for note in found.notes)  # at our own norm


def test_what_the_compiler_calls_in_its_place_is_the_first_difference():
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))
    found = diff(net, (torch.ones(4, 8),), precision="fp16", against="fp16", loss=mean, compiled="none")
    assert found.first.site == "2.div[forward]" and found.first.only == "A"
    assert "2.native_dropout[forward]" in [site.site for site in found.sites if site.only == "B"]


def test_decompositions_of_a_compiler_are_named(x):
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    found = diff(net, (x,), precision="uniform:fp16", against="uniform:fp16", compiled="inductor")
    assert found.first.site == "1.native_layer_norm[forward]" and found.first.only == "A"
    assert "1.rsqrt[forward]" in [site.site for site in found.sites if site.only == "B"]
    with pytest.raises(ns.NormstabError, match="did you mean 'core'"):
        diff(net, (x,), precision="fp16", compiled="cor")


def test_what_one_precision_computes_wide_is_no_divergence(x):
    class Upcast(nn.Module):
        def forward(self, x):
            return torch.log_softmax(x.float(), -1).exp()

    found = diff(Upcast(), (x,), precision="fp16")
    assert found.first is None


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
    assert main(["diff", "--check", "parted:Square", "--input", "4x8", "--compiled", "none", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["b"] == f"{answer['a']} compiled" and all(site["is_equal"] for site in answer["sites"])
    assert main(["diff", "a", "b", "--compiled", "none"]) == 2


SCENARIO = """\
version: 1
name: parted
record: digests
dataset: {name: synthetic, train: 64, test: 20}
model: {name: mlp, width: 8, norm: l1}
train: {batch: 16}
grid: {precision: [fp16]}
"""


def digested(tmp_path, name, *settings):
    """Train the cells here, not in workers, and return the directory."""
    (tmp_path / "parted.yaml").write_text(SCENARIO)
    for cell in expand(load_scenario(str(tmp_path / "parted.yaml"), overrides=settings)):
        run_cell(cell, tmp_path / name / "records" / cell.id)
    return str(tmp_path / name)


def test_two_runs_are_compared_by_the_digests_that_their_records_keep(tmp_path, capsys):
    a = digested(tmp_path, "a")
    again = digested(tmp_path, "again")
    other = digested(tmp_path, "other", "model.norm=l2")
    assert main(["diff", a, again, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["cells"]) == 2 and answer["first"] is None
    assert all(site["is_equal"] for site in answer["sites"])
    assert main(["diff", a, other, "--cell", "fp16", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["cells"]) == 1
    assert "norm" in answer["first"]["site"]
    assert answer["diverged"][0] == answer["first"]
    assert main(["diff", a, other]) == 1
    assert "parts at" in capsys.readouterr().out
    assert main(["diff", a, str(tmp_path)]) == 2
    assert main(["diff", a]) == 2
    (digests,) = list((tmp_path / "again").glob("records/*fp16*/digests.json"))
    digests.write_text("{}")
    assert main(["diff", a, again]) == 2


def test_keeping_digests_changes_no_record_and_trains_nothing_again(tmp_path):
    kept = digested(tmp_path, "kept")
    without = digested(tmp_path, "without", "record=null")
    files = sorted(path.relative_to(kept) for path in (tmp_path / "kept").glob("records/*/*.json*"))
    assert sum(path.name == "digests.json" for path in files) == 2
    assert not list((tmp_path / "without").glob("records/*/digests.json"))
    with_field = (tmp_path / "kept" / next(path for path in files if path.name == "record.json")).read_text()
    path = next(path for path in files if path.name == "record.json")
    assert with_field.replace(', "record": "digests"', "") == (tmp_path / "without" / path).read_text()
    records = {path: path.read_bytes() for path in (tmp_path / "without").glob("records/*/record.json")}
    cells = expand(load_scenario(str(tmp_path / "parted.yaml")))
    stock = _Run(cells, tmp_path / "without", is_fresh=False, pool=None, on_event=lambda event: None, log=None)
    assert not any(stock._has_record(cell.id) for cell in cells)  # they are run again, to be given digests
    assert digested(tmp_path, "without") == without
    assert all(stock._has_record(cell.id) for cell in cells)
    assert {path: path.read_bytes() for path in records} == records
    assert len(list((tmp_path / "without").glob("records/*/digests.json"))) == 2
