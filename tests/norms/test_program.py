"""Norms without kernels of their own, run by their traced programs: every bit and every entry of the readable code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import normstab as ns
from normstab.norms import op_by_op
from normstab.norms.catalogue import NORMS, NormSpec, Scheme, parse_norm
from normstab.norms.dispersion import (
    DISPERSIONS,
    Centred,
    Dispersion,
    Flow,
    Measured,
    add_eps,
    centred_sign,
    with_constant,
)
from normstab.norms.functional import normalize_backward, normalize_forward, normalize_with
from normstab.norms.program import launch_program
from normstab.norms.program.known_formats import formats_of
from normstab.norms.program.layer_outline import Outline
from normstab.norms.reduction import Reduction
from normstab.norms.trace import trace_forward
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key
from normstab.numerics.precision import Precision

pytest.importorskip("numba")
from tests.norms.test_fused import LAYOUTS, SPECIAL, WIDE, assert_same_ledger, is_same, reduction_of

Parameters = tuple[Tensor | None, Tensor | None]


# Two norms of one's own. The mean of square roots, squared: s = r r with r = mean(sqrt(abs d)), and so
# ds/dx_j = (t_j - mean(t)) / n with t = sign(d) / sqrt(abs y), for sqrt(abs d) = r sqrt(abs y).
def measure_roots(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    r = reduction.mean(ar.sqrt(ar.abs(centred.d), operation="roots"), ar, "dispersion")
    s = ar.mul(r, r, operation="square")
    return Measured(add_eps(s, scheme, ar, ar), s)


def correct_roots(h: Tensor, flow: Flow, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    sign = ar.sign(flow.centred)
    t = ar.div(sign, ar.sqrt(ar.abs(flow.normalized), operation="roots"), operation="power")
    t = torch.where(sign == 0, 0.0, t)
    product = ar.mul(flow.gradient, flow.normalized, operation="product")
    mean_product = reduction.mean(product, ar, "product")
    t = centred_sign(t, scheme, reduction, ar)
    return ar.sub(h, ar.mul(mean_product, t, operation="project"), operation="subtract")


# The median of abs d, found by torch's sort; no gradient flows through it.
def measure_median(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    rows_RN = reduction.rows(ar.abs(centred.d)).sort(dim=1).values
    middle = rows_RN[:, (reduction.n - 1) // 2 :][:, :1]
    return with_constant(reduction.keepdim(middle), None, scheme, reduction, ar)


def correct_nothing(h: Tensor, flow: Flow, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    return h


# Whose gradient is -0 or 0, by the sign of h: two constants that are equal and not the same.
def correct_to_zero(h: Tensor, flow: Flow, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    return ar.sub(ar.mul(-0.0, h, operation="below"), ar.mul(0.0, h, operation="above"), operation="subtract")


# One that asks its values for a number, so that it cannot be recorded.
def measure_asking(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    assert float(centred.d.abs().max()) >= 0.0
    return measure_roots(centred, scheme, reduction, ar)


# One that wants them as an array of numpy.
def measure_array(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    assert centred.d.detach().numpy().size
    return measure_roots(centred, scheme, reduction, ar)


# One that is wrong: its shapes do not go together.
def measure_wrongly(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    return measure_roots(centred._replace(d=centred.d + torch.ones(7, 7, 7, 7, 7)), scheme, reduction, ar)


OWN = {
    "roots": Dispersion(measure_roots, correct_roots),
    "median": Dispersion(measure_median, correct_nothing),
    "zeros": Dispersion(measure_roots, correct_to_zero),
    "asking": Dispersion(measure_asking, correct_roots),
    "array": Dispersion(measure_array, correct_roots),
    "wrong": Dispersion(measure_wrongly, correct_roots),
}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the rows of the norms of one's own."""
    for kind, dispersion in OWN.items():
        monkeypatch.setitem(DISPERSIONS, kind, dispersion)
        monkeypatch.setitem(NORMS, kind, NormSpec(kind))


def arithmetic(precision: str) -> Arithmetic:
    return Arithmetic(precision, ledger=Ledger(), key=Key(seed=5)).at("bn")


def assert_same(
    x: Tensor,
    grad: Tensor,
    parameters: Parameters,
    scheme: Scheme,
    reduction: Reduction,
    precision: str,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> None:
    """Run both twice, so that the second run meets a ledger with marks, and compare everything."""
    program, readable = arithmetic(precision), arithmetic(precision)
    for _ in range(2):
        found = launch_program.forward(x, *parameters, scheme, reduction, program)
        wanted = op_by_op.forward(x, *parameters, scheme, reduction, readable)
        assert found is not None
        pairs = [(found.output, wanted.output), (found.mean, wanted.mean), (found.stored, wanted.stored)]
        pairs += [(found.scale, wanted.saved.scale), (found.saved.gamma, wanted.saved.gamma)]
        assert all(is_same(a, b) for a, b in pairs)
        gradients = launch_program.backward(grad, found.saved, scheme, reduction, program, needs)
        expected = op_by_op.backward(grad, wanted.saved, scheme, reduction, readable, needs)
        assert gradients is not None
        assert all(is_same(a, b) for a, b in zip(gradients, expected, strict=True))
    assert_same_ledger(program, readable)


def example(norm: str, layout: str, precision: str) -> tuple[Tensor, Tensor, Parameters, Scheme, Reduction]:
    """A layer in numbers near 1, near the top of fp16 or near its bottom."""
    torch.manual_seed(len(f"{norm}{layout}{precision}"))
    scale = (1.0, 300.0, 1e-6)[(len(layout) + len(precision)) % 3]
    x = torch.randn(4, 6, 5, 11) * scale + scale / 2
    reduction, channels = reduction_of(layout, x.shape)
    scheme = Scheme(parse_norm(norm), centres=layout != "rms", tracks=True)
    return x, torch.randn_like(x), (torch.randn(channels), torch.randn(channels)), scheme, reduction


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["lp3", "lp2.5", "lp1", "lp2"])
def test_lp_runs_by_its_program_with_the_bits_of_the_readable_code(norm: str, layout: str) -> None:
    for precision in ("fp16", "bf16;divide=reciprocal"):
        assert_same(*example(norm, layout, precision), precision)


@pytest.mark.parametrize("precision", WIDE)
def test_lp_runs_by_its_program_in_every_rounding_and_order(precision: str) -> None:
    for layout in ("batch", "layer"):
        assert_same(*example("lp3", layout, precision), precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16;divide=reciprocal", *WIDE])
@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "lp3", None])
def test_evaluation_runs_by_a_program_with_the_bits_of_the_readable_code(norm: str | None, precision: str) -> None:
    x, gamma, beta, mean = torch.randn(4, 6, 5, 11) * 300, *(torch.randn(6) for _ in range(3))
    scheme = Scheme(None if norm is None else parse_norm(norm), tracks=True)
    stored = None if norm is None else torch.rand(6) + 0.5
    for reduction in (Reduction.of_batch(x.shape), Reduction.of_instance(x.shape)):
        for statistics, parameters in (((mean, stored), (gamma, beta)), ((None, stored), (gamma, None))):
            program, readable = arithmetic(precision), arithmetic(precision)
            for _ in range(2):
                found = normalize_with(x, *parameters, statistics, scheme, reduction, program)
                wanted = op_by_op.evaluate(x, *parameters, statistics, scheme, reduction, readable)
                pairs = [(found.output, wanted.output), (found.mean, wanted.mean), (found.stored, wanted.stored)]
                assert all(is_same(a, b) for a, b in [*pairs, *zip(found.saved, wanted.saved, strict=True)])
            assert_same_ledger(program, readable)


def test_a_layer_in_evaluation_runs_by_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    walked, run = [], launch_program.run
    monkeypatch.setattr(launch_program, "run", lambda *given: walked.append(given[0]) or run(*given))
    layer, x = ns.BatchNorm2d(6), torch.randn(4, 6, 5, 11, requires_grad=True)
    layer.arithmetic = arithmetic("fp16")
    layer.eval()(x).sum().backward()
    assert len(walked) == 1
    assert "running_var" in walked[0].program.inputs
    assert x.grad is not None


@pytest.mark.parametrize("norm", ["roots", "median", "zeros"])
@pytest.mark.usefixtures("own")
def test_a_norm_of_ones_own_runs_by_its_program(norm: str) -> None:
    for layout in LAYOUTS:
        assert_same(*example(norm, layout, "fp16"), "fp16")
    assert_same(*example(norm, "batch", "fp16/stochastic"), "fp16/stochastic")


@pytest.mark.parametrize("norm", ["lp3", "roots"])
@pytest.mark.usefixtures("own")
def test_special_values_take_a_program_nowhere_else(norm: str) -> None:
    values = torch.tensor([*SPECIAL, 2.0]).repeat(4)
    x, grad = values.view(2, 4, 6), values.flip(0).roll(5).view(2, 4, 6)
    for layout in LAYOUTS:
        reduction, channels = reduction_of(layout, x.shape)
        for precision in ("fp16", "e4m3fn", "q7.8/stochastic:20/q7.8:lanes16"):
            scheme = Scheme(parse_norm(norm), 0.0, centres=layout != "rms")
            assert_same(x, grad, (torch.ones(channels), torch.zeros(channels)), scheme, reduction, precision)


def test_a_program_runs_over_several_blocks_with_any_threads_and_parameters() -> None:
    x = torch.randn(6, 3, 20, 21).to(memory_format=torch.channels_last) * 1e-3
    scheme, before = Scheme(parse_norm("lp3"), 0.0), torch.get_num_threads()
    reduction, channels = reduction_of("batch", x.shape)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_same(x, x.flip(0), (torch.randn(channels), None), scheme, reduction, "fp16", (True, True, False))
            assert_same(x, x.flip(0), (None, None), scheme, reduction, "fp16", (True, False, False))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("norm", ["lp3", "roots"])
@pytest.mark.usefixtures("own")
def test_a_layer_runs_by_its_program_where_no_kernel_is_written_for_its_norm(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked, run = [], launch_program.run
    monkeypatch.setattr(launch_program, "run", lambda *given: walked.append(given[0]) or run(*given))
    layer, x = ns.BatchNorm2d(6, norm=norm), torch.randn(4, 6, 5, 11, requires_grad=True)
    layer.arithmetic = arithmetic("fp16")
    layer(x).sum().backward()
    assert [plan.reduction.axes for plan in walked] == [(0, 2)] * 2
    assert x.grad is not None
    assert math.isfinite(float(x.grad.abs().sum()))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("norm", ["asking", "array"])
def test_a_norm_that_cannot_be_recorded_runs_op_by_op(norm: str) -> None:
    x, grad, parameters, scheme, reduction = example(norm, "batch", "fp16")
    assert launch_program.forward(x, *parameters, scheme, reduction, arithmetic("fp16")) is None
    found, wanted = arithmetic("fp16"), arithmetic("fp16")
    done = normalize_forward(x, *parameters, scheme, reduction, found)
    expected = op_by_op.forward(x, *parameters, scheme, reduction, wanted)
    assert is_same(done.output, expected.output)
    gradients = normalize_backward(grad, done.saved, scheme, reduction, found)
    readable = op_by_op.backward(grad, expected.saved, scheme, reduction, wanted)
    assert all(is_same(a, b) for a, b in zip(gradients, readable, strict=True))
    assert_same_ledger(found, wanted)


@pytest.mark.usefixtures("own")
def test_a_fault_in_a_norm_of_ones_own_is_raised_as_it_is_op_by_op() -> None:
    x, _, parameters, scheme, reduction = example("wrong", "batch", "fp16")
    said = []
    for run in (normalize_forward, op_by_op.forward):
        with pytest.raises(RuntimeError) as caught:
            run(x, *parameters, scheme, reduction, arithmetic("fp16"))
        assert caught.traceback[-1].name == "measure_wrongly"
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_pair_of_functions_in_the_place_of_another_has_a_program_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the cell of a notebook that defines a norm is run again."""
    monkeypatch.setitem(NORMS, "mine", NormSpec("mine"))
    for name in ("roots", "median"):
        monkeypatch.setitem(DISPERSIONS, "mine", OWN[name])
        x, _, parameters, scheme, reduction = example("mine", "batch", "fp16")
        found = normalize_forward(x, *parameters, scheme, reduction, arithmetic("fp16"))
        wanted = op_by_op.forward(x, *parameters, scheme, reduction, arithmetic("fp16"))
        assert is_same(found.output, wanted.output), name


def test_what_is_known_of_a_format_is_what_the_values_are_in() -> None:
    precision = "fp16;square=bf16;variance=fp32"
    x, _, parameters, scheme, reduction = example("lp3", "batch", precision)
    program = trace_forward(Outline(scheme, reduction, Precision.parse(precision)))
    known = formats_of(program)
    done = op_by_op.forward(x, *parameters, scheme, reduction, Arithmetic(precision))
    for name, value in (("output", done.output), ("centred", done.saved.centred), ("scale", done.saved.scale)):
        traced = program.outputs[name]
        assert traced is not None
        assert value is not None
        assert is_same(ns.cast(value, known[traced.number].format), value), name
    narrow = {found.format for found in known.values()}
    assert {str(format) for format in narrow} >= {"fp16", "bf16", "fp32"}
