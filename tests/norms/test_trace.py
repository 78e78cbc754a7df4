"""The traced programs against the ledgers of the readable code: the same sites in the same order."""

from __future__ import annotations

import pytest
import torch

from normstab.norms import op_by_op
from normstab.norms.catalogue import Scheme, parse_norm
from normstab.norms.program.layer_outline import Outline
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Program, trace_backward, trace_evaluation, trace_forward
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key
from normstab.numerics.precision import Precision

SHAPE = (4, 6, 5)
NORMS = ["l2", "l1", "linf", "top1", "top10", "range", "lp3", "lp2.5", "lp1", None]
REDUCTIONS = {
    "batch": Reduction.of_batch(SHAPE),
    "layer": Reduction.of_layer((4, 30), (30,)),
    "group": Reduction.of_group(SHAPE, 2),
    "instance": Reduction.of_instance((4, 6, 12)),
    "rms": Reduction.of_layer((4, 30), (30,)),
}
PRECISIONS = [
    "fp16",
    "fp16;divide=reciprocal",
    "fp16;square=fp32;sum=fp16;variance=fp32;reciprocal=tf32;gradient=bf16;divide=reciprocal",
    "fp16/nearest/fp16:sequential+kahan",
    "fp16/stochastic/exact",
    "fp16/nearest/native",
    "fp16;mean=blockwise4",
    "fp16;mean=welford",
    "fp64",
]


def arithmetic(precision: str) -> Arithmetic:
    return Arithmetic(precision, ledger=Ledger(), key=Key(seed=3)).at("bn")


def sites_of(ar: Arithmetic, direction: str) -> list[str]:
    """Return the operations of the ledger's rows of one direction, in the order in which they were made."""
    assert ar.ledger is not None
    return [site.operation.removeprefix("bn.") for site in ar.ledger if site.direction == direction]


def assert_traced(program: Program, found: list[str]) -> None:
    assert list(program.sites) == found


CONFIGURATIONS = [("batch", precision) for precision in PRECISIONS] + [(layout, PRECISIONS[2]) for layout in REDUCTIONS]


@pytest.mark.parametrize(("layout", "precision"), CONFIGURATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_traced_program_has_the_sites_of_the_ledger(norm: str | None, precision: str, layout: str) -> None:
    reduction = REDUCTIONS[layout]
    x = torch.randn(reduction.view)
    for eps, tracks, has_parameters in ((1e-5, True, True), (0.0, False, False)):
        scheme = Scheme(None if norm is None else parse_norm(norm), eps, centres=layout != "rms", tracks=tracks)
        outline = Outline(scheme, reduction, Precision.parse(precision), has_parameters, has_parameters)
        parameters = [torch.ones(reduction.parameters) if has_parameters else None for _ in range(2)]
        ar = arithmetic(precision)
        done = op_by_op.forward(x, *parameters, scheme, reduction, ar)
        assert_traced(trace_forward(outline), sites_of(ar, "forward"))
        needs = (True, has_parameters, has_parameters)
        op_by_op.backward(torch.randn(reduction.view), done.saved, scheme, reduction, ar, needs)
        assert_traced(trace_backward(outline, needs), sites_of(ar, "backward"))


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("norm", NORMS)
def test_a_traced_evaluation_has_the_sites_of_the_ledger(norm: str | None, eps: float) -> None:
    reduction, scheme = REDUCTIONS["batch"], Scheme(None if norm is None else parse_norm(norm), eps)
    statistics = (torch.zeros(6), None if norm is None else torch.ones(6))
    ar, outline = arithmetic("fp16"), Outline(scheme, reduction, Precision.parse("fp16"), has_beta=False)
    op_by_op.evaluate(torch.randn(SHAPE), torch.ones(6), None, statistics, scheme, reduction, ar)
    assert_traced(trace_evaluation(outline, True, norm is not None), sites_of(ar, "forward"))


def test_the_calls_of_a_program_are_made_in_the_order_of_stamps() -> None:
    scheme, reduction = Scheme(parse_norm("lp3"), tracks=True), REDUCTIONS["batch"]
    ar, made = arithmetic("fp16"), []
    real = Arithmetic.call

    class Listening(Arithmetic):
        def call(self, operation, format=None):  # type: ignore[no-untyped-def]
            made.append((operation, self.role))
            return real(self, operation, format)

    ar = Listening("fp16", ledger=Ledger())
    op_by_op.forward(torch.randn(SHAPE), torch.ones(6), None, scheme, reduction, ar)
    program = trace_forward(Outline(scheme, reduction, Precision.parse("fp16"), has_beta=False))
    assert [(called.operation, called.role) for called in program.calls] == made
    assert made.count(("power", "square")) == 2


def test_a_program_says_which_values_an_operation_has() -> None:
    program = trace_forward(Outline(Scheme(parse_norm("l1")), REDUCTIONS["batch"], Precision.parse("fp16")))
    steps = {step.calls[0].operation: step for step in program.steps if step.calls}
    total, mean = steps["mean.sum"].results[0], steps["mean.div"]
    assert mean.operands == (total, 20.0)
    assert steps["mean.sum"].detail[0] == (0, 2)
    assert steps["divide"].operands[0] == steps["centre"].results[0]
    assert program.outputs["scale"] == steps["eps"].results[0] == steps["divide"].operands[1]


def test_a_program_is_the_same_in_inference_mode() -> None:
    outline = Outline(Scheme(parse_norm("top3"), 3e-5), REDUCTIONS["group"], Precision.parse("fp16"))
    with torch.inference_mode():
        inside = trace_forward(outline)
    trace_forward.cache_clear()
    assert [step.kind for step in inside.steps] == [step.kind for step in trace_forward(outline).steps]
