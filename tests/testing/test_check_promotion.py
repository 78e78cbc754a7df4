"""`promote --check`: what has to stay wide in a model of one's own, without training."""

import json

import pytest
import torch
from torch import nn

from normstab.__main__ import main
from normstab.assess.verdicts import Verdict
from normstab.errors import NormstabError
from normstab.report.promotion_report import promotion_text
from normstab.search.candidates import operation_candidates
from normstab.search.promotion import Search
from normstab.testing.check import check
from normstab.testing.check_input import parse_inputs
from normstab.testing.check_promotion import promote_check

MODEL = """\
import torch
from torch import nn

class RMS(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        x = x * self.scale
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

class Net(nn.Module):
    def __init__(self, planted=(2, 5)):
        super().__init__()
        self.norms = nn.ModuleList([RMS(1000.0 if i in planted else 1.0) for i in range(8)])
        self.mixes = nn.ModuleList([nn.Linear(16, 16) for _ in range(8)])

    def forward(self, x):
        for norm, mix in zip(self.norms, self.mixes):
            x = mix(norm(x))
        return x
"""
INPUTS = parse_inputs(["8x16"])


@pytest.fixture
def net(tmp_path, monkeypatch):
    (tmp_path / "planted_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(MODEL, space)
    torch.manual_seed(0)
    return space["Net"]


@pytest.mark.parametrize("planted", [(3,), (2, 5), (0, 1, 7)])
def test_exactly_the_planted_modules_are_found(net, planted):
    found = promote_check(net(planted), inputs=INPUTS, precision="fp16")
    assert set(found.members) == {f"norms.{i}" for i in planted}
    assert found.is_minimal and found.verdict is Verdict.STABLE
    assert set(found.proofs) == set(found.members)
    assert found.fresh_seeds == (1,)
    assert found.trainings == len(found.tried) + 2  # the failing pass, the sets, the pass on a fresh input
    assert len(found.tried) <= 12


def test_classes_of_operations_are_candidates_too():
    module = nn.BatchNorm1d(4)
    built = module, 500.0 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), None
    found = promote_check(built, precision="fp16", search=Search(by="class", fresh_seeds=0))
    assert set(found.members) == {"square", "variance"}
    assert found.rules == {"_default": "fp16/nearest/fp32:lanes64;square=fp32;variance=fp32"}


@pytest.mark.parametrize(("by", "prefix"), [("operation", "op:"), ("site", "1::")])
def test_operations_are_candidates_too(by, prefix):
    module = nn.Sequential(nn.Identity(), nn.BatchNorm1d(4))
    built = module, 500.0 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), None
    found = promote_check(built, precision="fp16", search=Search(by=by, fresh_seeds=0))
    assert {f"{prefix}square", f"{prefix}dispersion.div"} <= set(found.members)
    assert all(member.startswith(prefix) for member in found.members)
    assert set(found.rules) == set(found.members) == set(found.proofs)
    assert found.is_minimal and found.verdict is Verdict.STABLE


@pytest.mark.parametrize("is_site", [False, True])
def test_every_operation_that_is_a_candidate_has_a_rule_that_something_meets(is_site):
    net = nn.Sequential(
        nn.Conv1d(3, 4, 1),
        nn.BatchNorm1d(4),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.LayerNorm(6),
        nn.Softmax(-1),
    )
    answer = check(net, inputs=parse_inputs(["8x3x5"]), precision="fp16")
    modules = [name for name, _ in net.named_modules()]
    found = operation_candidates(answer.evidence, modules, in_one_module=is_site)
    assert {("1::square" if is_site else "op:square"), ("4::addmm" if is_site else "op:addmm")} <= {
        c.name for c in found
    }
    rules = dict.fromkeys((candidate.name for candidate in found), "fp32")
    check(net, inputs=parse_inputs(["8x3x5"]), precision="fp16", rules=rules)  # raises for a rule that nothing meets


def test_a_model_that_survives_needs_nothing(net):
    with pytest.raises(NormstabError, match="STABLE already"):
        promote_check(net(()), inputs=INPUTS, precision="fp16")


def test_what_is_undecided_is_told_as_it_was_counted(net):
    found = promote_check(net((3,)), inputs=INPUTS, precision="fp16")
    undecided = [trial for trial in found.undecided if not trial.suffices]
    text = promotion_text(found)
    assert ("--allow INCONCLUSIVE accepts them" in text) == bool(undecided)


def test_the_command_takes_a_scenario_or_a_model(net, tmp_path, capsys):
    line = ["promote", "--check", "planted_model:Net", "--input", "8x16", "--precision", "fp16"]
    assert main([*line, "--json", "--out", "out"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["members"]) == {"norms.2", "norms.5"} == set(answer["rules"])
    assert answer["minimal"] and answer["verdict"] == "STABLE"
    assert "norms.2 + norms.5" in (tmp_path / "out" / "report.md").read_text()
    assert main([*line, "--by", "class"]) == 1
    assert main(["promote"]) == 2
    assert main(["promote", "quickstart", "--check", "planted_model:Net"]) == 2
    assert main([*line[:3], "--input", "8x17"]) == 2
