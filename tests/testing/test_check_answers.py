"""check: the verdict without training, who is blamed for lost precision, and what is the user's own error."""

import json

import pytest
import torch
from torch import nn

from normstab.__main__ import main
from normstab.terminal.exit_codes import VERDICT_CODES, code_of_verdict
from normstab.testing.check import check
from normstab.testing.check_text import answer_text
from normstab.testing.output_verdict import SEVERITY, spread_error, verdict_without_training

FACTORIES = """\
import torch
from torch import nn


class Offset(nn.Module):
    def forward(self, x):
        return (x + 1000.0) - 1000.0


class Dead(nn.Module):
    def forward(self, x):
        return x * 1e-9


def offset():
    return Offset()


def dead():
    return Dead()


def random_layer():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def raises():
    raise RuntimeError("no weights here")


def needs(width):
    return nn.Linear(width, width)


def lazy():
    return nn.LazyLinear(4)


def traced():
    return torch.jit.trace(nn.Linear(4, 4), torch.zeros(2, 4))


def quantized():
    return torch.ao.nn.quantized.Linear(4, 4)


def with_batch():
    return nn.Linear(4, 4), torch.zeros(2, 4)


def without_targets():
    return nn.Linear(4, 4), torch.zeros(2, 4), nn.CrossEntropyLoss()


def wrong_shape():
    return nn.Sequential(nn.Linear(5, 4))
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    name = f"made_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def answer_of(capsys, *arguments):
    code = main(["check", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_large_error_is_degraded_blamed_on_a_site_and_exits_1(factories, capsys):
    code, answer = answer_of(capsys, f"{factories}:offset", "--input", "64x8")
    assert (code, answer["verdict"]) == (1, "DEGRADED")
    assert answer["blame"]["site"] == "add[forward]" and answer["blame"]["counter"] == "precision"
    assert main(["check", f"{factories}:offset", "--input", "64x8", "--allow", "DEGRADED"]) == 0
    assert "loss of precision at `add[forward]`" in capsys.readouterr().out


def test_a_dead_output_is_collapsed(factories, capsys):
    code, answer = answer_of(capsys, f"{factories}:dead", "--input", "64x8", "--precision", "fp16")
    assert (code, answer["verdict"]) == (1, "COLLAPSED") and answer["blame"]["counter"] == "underflow"
    assert main(["check", f"{factories}:dead", "--input", "64x8", "--allow", "DEGRADED"]) == 1


def test_the_seed_seeds_the_factory(factories, capsys):
    arguments = (f"{factories}:random_layer", "--input", "64x4", "--precision", "e4m3fn")
    first, again, other = (
        answer_of(capsys, *arguments, "--seed", seed)[1]["reference_losses"] for seed in ("3", "3", "4")
    )
    assert first == again and first != other


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("raises", "RuntimeError: no weights here\n"),
        ("needs", "missing 1 required positional argument: 'width'"),
        ("lazy", "lazy layers"),
        ("traced", "traced or scripted"),
        ("quantized", "quantized"),
        ("with_batch", "(Linear, Tensor)"),
        ("without_targets", "target"),
        ("wrong_shape", "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_the_users_error_is_told_as_theirs(factories, capsys, factory, said):
    assert main(["check", f"{factories}:{factory}", "--input", "2x4"]) == 2
    told = capsys.readouterr().err
    assert said in told and "internal error" not in told
    if factory == "raises":
        assert f"{factories}.py:28 in raises: raise RuntimeError" in told


def test_a_module_that_fails_on_import_is_the_users_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_on_import.py").write_text("width = 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["check", "broken_on_import:build", "--input", "2x4"]) == 2
    assert "broken_on_import.py:1 in <module>: width = 1 / 0" in capsys.readouterr().err


def test_options_of_training_are_obeyed(factories, capsys):
    arguments = (f"{factories}:random_layer", "--input", "16x4", "--precision", "fp32", "--steps", "3")
    sgd = answer_of(capsys, *arguments)[1]["losses"]
    adam = answer_of(capsys, *arguments, "--optimizer", "adam")[1]["losses"]
    faster = answer_of(capsys, *arguments, "--lr", "0.1")[1]["losses"]
    entropy = answer_of(capsys, *arguments, "--loss", "cross-entropy")[1]["losses"]
    assert len(sgd) == 3 and len({tuple(losses) for losses in (sgd, adam, faster, entropy)}) == 4
    assert main(["check", *arguments, "--optimizer", "adamm"]) == 2
    assert "did you mean 'adam" in capsys.readouterr().err


def test_rules_give_a_module_a_precision_of_its_own(factories, capsys):
    arguments = (f"{factories}:random_layer", "--input", "16x4", "--precision", "e4m3fn")
    plain = answer_of(capsys, *arguments)[1]["error"]
    ruled = answer_of(capsys, *arguments, "--rules", "_default=fp32")[1]["error"]
    assert ruled < plain / 10
    assert main(["check", *arguments, "--rules", "0"]) == 2
    assert "MODULE=PRECISION" in capsys.readouterr().err


def test_the_line_of_a_site_is_the_users_or_none():
    answer = check((nn.Sequential(nn.Linear(4, 4)), 1e6 * torch.ones(2, 4), None), precision="fp16")
    sources = [source for _, _, source in answer.first.values()]
    assert sources and all(source == "" for source in sources)


def test_an_answer_fits_on_a_screen_and_verbose_has_the_rest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 2))
    answer = check((model, 300 * torch.randn(64, 8), None), precision="fp16")
    text = answer_text(answer)
    assert len(text.splitlines()) <= 24 and "worst sites\n" not in text
    table = [line for line in text.splitlines() if "[forward]" in line and not line.startswith(("blame", "-", "NON"))]
    assert all(len(line) <= 80 for line in table)
    assert "worst sites\n" in answer_text(answer, verbose=True)
    assert not answer.worst_sites[0][0].endswith(".const[forward]")


def test_every_verdict_has_an_exit_code_and_help_shows_them(capsys):
    assert set(VERDICT_CODES) == {*SEVERITY, "INCONCLUSIVE"}
    assert [code_of_verdict(verdict) for verdict in SEVERITY] == [0, 1, 1, 1, 1]
    assert code_of_verdict("INCONCLUSIVE") == 0 and code_of_verdict("INCONCLUSIVE", strict=True) == 1
    main(["check", "--help"])
    assert "DEGRADED, DIVERGED, COLLAPSED or NONFINITE" in " ".join(capsys.readouterr().out.split())


def test_a_useless_bound_is_inconclusive_and_a_small_error_below_a_small_bound_stable():
    wide = torch.linspace(-1, 1, 11)
    near, far = wide + 0.01, wide + 0.2 * torch.eye(11)[5]
    format = "fp16"
    assert verdict_without_training([spread_error("output", near, wide, 0.05)], format)[0] == "STABLE"
    assert verdict_without_training([spread_error("output", near, wide, 1.3)], format)[0] == "INCONCLUSIVE"
    assert verdict_without_training([spread_error("output", far, wide, 1.3)], format)[0] == "DEGRADED"
    assert verdict_without_training([spread_error("output", 0 * wide, wide, 1.3)], format)[0] == "COLLAPSED"
    assert verdict_without_training([spread_error("output", near + 500, wide + 500, 0.05)], format)[0] == "STABLE"


def test_a_running_variance_beyond_the_format_breaks_the_model_as_in_torch_s_own_half():
    layer, x = nn.BatchNorm1d(4), 3000 * torch.randn(64, 4)
    answer = check((layer, (x,), None), precision="half")
    assert answer.verdict == "NONFINITE" and "the buffer running_var" in answer.reason
    real = nn.BatchNorm1d(4).half()
    assert real(x.half()).isfinite().all() and real.running_var.isinf().all()
    assert check((nn.BatchNorm1d(4), (x,), None), precision="bfloat16").passed


def test_a_buffer_that_forward_replaces_is_looked_at_too():
    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean_square", torch.zeros(4))
            self.register_buffer("mask", torch.full((4,), -torch.inf))  # meant

        def forward(self, x):
            self.mean_square = x.square().mean(0)
            return x * 1e-3

    answer = check((Replaces(), (3000 * torch.randn(8, 4),), None), precision="uniform:fp16")
    assert answer.verdict == "NONFINITE" and "the buffer mean_square" in answer.reason
    assert check((Replaces(), (torch.randn(8, 4),), None), precision="uniform:fp16").passed
