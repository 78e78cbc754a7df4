"""check: the public failures are found and blamed on the right operation; sound models pass; bad input is told."""

import json

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.experiment.network.users_code import load_function
from normstab.testing.check import check
from normstab.testing.check_input import parse_inputs
from normstab.testing.check_text import answer_json, answer_text
from normstab.testing.output_verdict import SEVERITY
from tests.testing import failures

# factory: the site where the first inf or NaN was made, and the verdict.
FAILURES = {
    "rms_norm": ("pow[forward]", ("COLLAPSED", "DEGRADED")),
    "convnext_layer_norm": ("pow[forward]", ("COLLAPSED", "DEGRADED")),
    "tiny_eps": ("rsqrt[forward]", ("NONFINITE",)),
    "bessel": ("sum[forward]", ("NONFINITE",)),
    "inf_before_batch_norm": ("fc.addmm[forward]", ("NONFINITE",)),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_public_failure_is_blamed_on_the_operation_that_made_it(name):
    site, verdicts = FAILURES[name]
    answer = check(getattr(failures, name)(), precision="fp16")
    assert answer.verdict in verdicts
    assert answer.blame.site == site
    assert not answer.passed
    source = next(iter(answer.first.values()))[2]
    assert "failures.py:" in source or name == "inf_before_batch_norm"


@pytest.mark.parametrize("name", FAILURES)
def test_bf16_has_the_range_for_all_of_them(name):
    answer = check(getattr(failures, name)(), precision="bf16")
    assert answer.verdict in ("STABLE", "INCONCLUSIVE"), answer.reason


def test_the_remedies_of_an_overflowing_square_name_bf16():
    answer = check(failures.rms_norm(), precision="fp16")
    assert "bf16" in [remedy.name for remedy in answer.remedies]
    foretold = {found.format: found for found in answer.forecast}
    assert foretold["fp16"].overflow > 0 and foretold["fp16"].worst_share > 0.5
    assert foretold["bf16"].overflow == 0 and set(foretold) == set(ns.FORMATS) - {"fp64", "fp32"}


def test_a_sound_model_is_stable_and_nothing_is_unrecognised():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    answer = check(model, inputs=parse_inputs(["8x3x8x8"]), precision="fp16")
    assert answer.verdict == "STABLE", answer.reason
    assert answer.unrecognised == {}
    assert [found.layer for found in answer.headroom] == ["1"]


def test_norm_swaps_the_layers_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 2))
    batch = (300 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1)),)
    l2 = check((model, batch, None), precision="fp16")
    l1 = check((model, batch, None), precision="fp16", norm="l1")
    assert l2.blame.site == "1.square[forward]" and l1.blame.counter == "underflow"
    assert l1.replaced == {"1": "l1"}
    assert SEVERITY.index(l1.verdict) < SEVERITY.index(l2.verdict)


def test_training_steps_can_show_what_one_pass_does_not():
    class Exploding(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(100.0))

        def forward(self, x):
            return (self.w * x).square()

    x = torch.full((4,), 2.0)
    assert check((Exploding(), x, None), precision="fp16").verdict == "NONFINITE"
    answer = check((nn.Linear(4, 1), x, None), precision="fp16", train_steps=5)
    assert len(answer.losses) == 5 and answer.losses[-1] < answer.losses[0]


def test_the_model_is_left_as_it_was():
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    check((model, torch.randn(3, 4), None), precision="fp16", train_steps=3)
    assert torch.equal(model.weight, before) and model.weight.grad is None


def test_the_answer_reads_as_text_and_as_json():
    answer = check(failures.tiny_eps(), precision="fp16")
    text = answer_text(answer)
    assert text.startswith("NONFINITE in fp16/nearest") and "first offences" in text and "failures.py" in text
    document = json.loads(json.dumps(answer_json(answer)))
    assert document["verdict"] == "NONFINITE" and document["passed"] is False


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("8x3x", "SHAPE"),
        ("8x3:flot32", "did you mean 'float32'"),
        ("8x3:float32:3..1", "LOW < HIGH"),
        ("0x3", "elements"),
        ("a b", "SHAPE"),
    ],
)
def test_a_malformed_input_is_told_what_is_allowed(text, names):
    with pytest.raises(ns.NormstabError, match=names):
        parse_inputs([text])


def test_inputs_are_made_as_told():
    specs = parse_inputs(["ids=2x16:int64:5..9", "3x4:float32:-1..1"])
    generator = torch.Generator().manual_seed(0)
    ids, x = specs[0].make(generator), specs[1].make(generator)
    assert (specs[0].name, ids.dtype, ids.shape) == ("ids", torch.int64, (2, 16))
    assert ids.min() >= 5 and ids.max() <= 8 and x.abs().max() <= 1
    with pytest.raises(ns.NormstabError, match="twice"):
        parse_inputs(["a=3", "a=4"])


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("nosuchmodule:build", "no module named"),
        ("torch.nn", "package.module:function"),
        ("torch.nn:Linaer", "did you mean 'Linear'"),
    ],
)
def test_a_factory_that_is_not_there_is_told(path, names):
    with pytest.raises(ns.NormstabError, match=names):
        load_function(path)


def test_input_that_cannot_be_run_is_told():
    with pytest.raises(ns.NormstabError, match="--input"):
        check(nn.Linear(2, 2))
    with pytest.raises(ns.NormstabError, match="allowed: a module"):
        check("model")
    with pytest.raises(ns.NormstabError, match="no normalization layer"):
        check(nn.Linear(2, 2), inputs=parse_inputs(["3x2"]), norm="l1")
    with pytest.raises(ns.NormstabError, match="native"):
        check(nn.Linear(2, 2), inputs=parse_inputs(["3x2"]), precision="native")


class MaskedThroughFloat32(nn.Module):
    """A row of masks of the dtype's least number, cast through float32, as left-padded eager attention has them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        mask = torch.full((4,), torch.finfo(x.dtype).min, dtype=x.dtype).to(torch.float32).to(x.dtype)
        return torch.softmax(self.linear(x) + mask, -1)


class NotInFloat64(nn.Module):
    """A module that takes float32 and what is narrower."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        if x.dtype == torch.float64:
            raise TypeError("no kernel for double")
        return self.linear(x)


@pytest.mark.parametrize(
    ("kind", "why"), [(MaskedThroughFloat32, "not finite there"), (NotInFloat64, "TypeError: no kernel for double")]
)
def test_the_reference_is_float32_where_float64_breaks_the_model(kind, why):
    torch.manual_seed(0)
    answer = check((kind(), (torch.randn(3, 4),), None), precision="bf16")
    assert answer.passed, answer.reason
    assert any(note.startswith("compared with float32, not with float64") and why in note for note in answer.notes)


def test_a_model_that_is_not_finite_in_float32_either_is_to_be_mended():
    with pytest.raises(ns.NormstabError, match="not finite even in float32: mend the model"):
        check((nn.Linear(2, 2), (torch.full((1, 2), float("inf")),), None), precision="fp16")


class MatrixExponential(nn.Module):
    """A module whose operation no arithmetic here knows."""

    def forward(self, x):
        return torch.linalg.matrix_exp(0.1 * x)


def test_no_verdict_is_given_where_much_was_not_simulated():
    model = nn.Sequential(nn.Linear(4, 4), MatrixExponential())
    answer = check((model, (torch.rand(4, 4),), None), precision="fp16")
    assert answer.verdict == "INCONCLUSIVE" and "linalg_matrix_exp" in answer.unrecognised
    assert "% of the results were not simulated (" in answer.reason and "else it would be" in answer.reason
