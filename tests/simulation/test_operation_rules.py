"""Rules about single operations: of torch's, of a module's, and of a site inside a norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.norms.catalogue import Scheme, parse_norm
from normstab.norms.program.layer_outline import Outline
from normstab.norms.reduction import Reduction
from normstab.norms.trace import trace_backward, trace_evaluation, trace_forward
from normstab.numerics.precision import Precision
from normstab.numerics.rules import plain_operation
from normstab.simulation.around.operation_rules import NORM_SITES


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Softmax(-1)), 300 * torch.randn(16, 4)


@pytest.mark.parametrize("precision", ["fp16", "fp16;casts=ignore"])
@pytest.mark.parametrize("key", ["1::square", "re:.*::square", "op:square"])
def test_a_site_inside_a_norm_is_widened_by_its_rule(key: str, precision: str) -> None:
    model, x = network()
    with ns.simulate(model, precision) as before:
        model(x)
    with ns.simulate(model, precision, rules={key: "fp32"}) as after:
        model(x)
    assert before.ledger["1.square"].overflow > 0
    assert after.ledger["1.square"].overflow == 0 and after.ledger["1.square"].largest > 65504


def test_a_rule_about_an_operation_computes_there_and_casts_back() -> None:
    x = torch.tensor([[1.0, 1.0009765625, 3.0]])
    with ns.simulate(nn.Identity(), "fp32", rules={"op:mul": "e4m3fn"}) as run:
        found = x * x
    narrow = ns.cast(x, "e4m3fn")
    assert torch.equal(found, ns.cast(narrow * narrow, "e4m3fn"))
    assert run.ledger["(outside).mul.load"].count == 6 and run.ledger["(outside).to"].count == 3


def test_a_wider_rule_overflows_only_where_its_result_comes_back() -> None:
    model = nn.Identity()
    with ns.simulate(model, "fp16", rules={"op:mul": "fp32"}) as run:
        y = model(torch.full((4,), 300.0))
        assert (y * y).isinf().all()
    assert run.ledger["(outside).mul"].overflow == 0 and run.ledger["(outside).to"].overflow == 4


def test_the_rule_of_an_operation_in_a_module_goes_before_that_of_the_operation_and_of_the_module() -> None:
    model, x = network()
    rules = {"2::softmax": "e5m2", "op:softmax": "e4m3fn", "2": "bf16"}
    with ns.simulate(model, "fp32", rules=rules):
        y = model(x)
    assert torch.equal(y, ns.cast(y, "e5m2")) and not torch.equal(y, ns.cast(y, "e4m3fn"))


def test_native_network_with_one_narrow_operation() -> None:
    model, x = network()
    with ns.simulate(model, "native", rules={"op:softmax": "e4m3fn"}) as run:
        y = model(x)
    assert torch.equal(y, ns.cast(y, "e4m3fn"))
    assert {site.operation for site in run.ledger} == {"_softmax", "_softmax.load"}


def test_a_rule_that_matches_nothing_is_an_error_that_lists_what_there_is() -> None:
    model, x = network()
    for rule, message in (
        ("op:softmx", "unknown operation 'softmx'; did you mean 'softmax'"),
        ("op:convolution", r"'op:convolution': no operation met it \(.*softmax"),
        ("head::softmax", "the model has no module 'head'"),
    ):
        with pytest.raises(ns.NormstabError, match=message), ns.simulate(model, "fp16", rules={rule: "fp32"}):
            model(x)


def test_an_exception_of_the_body_is_not_replaced_by_that_of_a_rule() -> None:
    model, x = network()
    with pytest.raises(ZeroDivisionError), ns.simulate(model, "fp16", rules={"op:convolution": "fp32"}):
        model(x)
        raise ZeroDivisionError


def test_the_sites_that_rules_may_name_are_those_of_the_norms() -> None:
    found = set()
    for name in ("l2", "l1", "linf", "top3", "range", "lp3"):
        for precision in ("fp16", "fp16;divide=reciprocal"):
            scheme = Scheme(parse_norm(name), eps=1e-5, tracks=True)
            outline = Outline(scheme, Reduction.of_batch((4, 6, 5)), Precision.parse(precision))
            for trace in (trace_forward, trace_backward, trace_evaluation):
                found |= {plain_operation(site) for site in trace(outline).sites}
    leaving = {"output", "input.grad", "gamma.grad", "beta.grad", "variance"}  # the last is of mean=welford
    means = {site.removesuffix(".div") for site in found if site.endswith(".div")}
    assert found | means | leaving == NORM_SITES
