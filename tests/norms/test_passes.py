"""The passes of traced programs: nothing before what it needs, and in their order the bits of the readable code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from normstab.norms import op_by_op
from normstab.norms.catalogue import Scheme, parse_norm
from normstab.norms.passes import VIEWS, Extent, Passes, split
from normstab.norms.program import whole_steps
from normstab.norms.program.layer_outline import Outline
from normstab.norms.program.whole_steps import Values, make_calls, run_steps
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Program, Value, trace_backward, trace_forward
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import MOST_KEPT
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key
from normstab.numerics.precision import Precision

NORMS = ["l2", "l1", "linf", "top3", "range", "lp3", "lp2.5", None]
REDUCTIONS = {
    "batch": Reduction.of_batch((4, 6, 5)),
    "layer": Reduction.of_layer((4, 30), (30,)),
    "group": Reduction.of_group((4, 6, 5), 2),
    "instance": Reduction.of_instance((4, 6, 5)),
    "rms": Reduction.of_layer((4, 30), (30,)),
}
PRECISION = "fp16/stochastic/fp32:lanes8;square=fp32;variance=fp32;gradient=bf16;divide=reciprocal"


def outline_of(norm: str | None, layout: str, precision: str = PRECISION) -> Outline:
    scheme = Scheme(None if norm is None else parse_norm(norm), centres=layout != "rms", tracks=True)
    return Outline(scheme, REDUCTIONS[layout], Precision.parse(precision))


def replay(program: Program, parts: Passes, given: dict[str, Any], ar: Arithmetic) -> dict[str, torch.Tensor | None]:
    """Run a program pass by pass: walks, numbers of groups, whole tensors. Return its outputs."""
    values: Values = {program.inputs[name].number: x for name, x in given.items() if x is not None}
    views = {step.results[0].number: step for step in program.steps if step.kind in VIEWS}
    made = make_calls(program, ar)
    run_steps(parts.before, values, made, ar, views)
    for part in parts.passes:
        for steps in (part.elements, part.between, part.whole):
            run_steps(steps, values, made, ar, views)
    run_steps([views[v.number] for v in program.outputs.values() if v and v.number in views], values, made, ar, views)
    return {name: None if v is None else values[v.number] for name, v in program.outputs.items()}


def is_same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b if a is None or b is None else a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("layout", REDUCTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_program_in_the_order_of_its_passes_has_the_bits_of_the_readable_code(norm: str | None, layout: str) -> None:
    outline = outline_of(norm, layout)
    scheme, reduction = outline.scheme, outline.reduction
    x, grad = torch.randn(reduction.view), torch.randn(reduction.view)
    gamma, beta = torch.rand(reduction.parameters), torch.randn(reduction.parameters)
    passed, readable = (Arithmetic(PRECISION, ledger=Ledger(), key=Key(seed=5)).at("bn") for _ in range(2))
    program = trace_forward(outline)
    found = replay(program, split(program, reduction), {"x": x, "gamma": gamma, "beta": beta}, passed)
    wanted = op_by_op.forward(x, gamma, beta, scheme, reduction, readable)
    assert is_same(found["output"], wanted.output)
    assert is_same(found["mean"], wanted.mean)
    assert is_same(found["stored"], wanted.stored)
    assert all(is_same(found[name], kept) for name, kept in wanted.saved._asdict().items())
    program = trace_backward(outline)
    given = {"grad": grad, **wanted.saved._asdict()}
    back = replay(program, split(program, reduction), given, passed.towards("backward").in_format("gradient"))
    assert [
        is_same(a, b)
        for a, b in zip(back.values(), op_by_op.backward(grad, wanted.saved, scheme, reduction, readable), strict=True)
    ] == [True] * 3
    assert list(passed.ledger) == list(readable.ledger)
    assert dict(passed.ledger) == dict(readable.ledger)


@pytest.mark.parametrize("layout", REDUCTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_step_is_in_one_pass_and_no_walk_reads_what_is_made_after_it(norm: str | None, layout: str) -> None:
    outline = outline_of(norm, layout)
    for program in (trace_forward(outline), trace_backward(outline)):
        parts = split(program, outline.reduction)
        there = {parts.viewed[value.number] for value in program.inputs.values()}
        seen = []
        walks = [part.elements for part in parts.passes]
        for steps in [parts.before, *(s for part in parts.passes for s in (part.elements, part.between, part.whole))]:
            closing, is_walk = [], any(steps is walk for walk in walks)
            for step in steps:
                read = {parts.viewed[x.number] for x in step.operands if isinstance(x, Value)}
                assert read <= there, step
                # A sum is closed at the end of its walk, and no element of that walk may read it.
                closes = is_walk and step.kind == "accumulate"
                (closing.extend if closes else there.update)(r.number for r in step.results)
                seen.append(id(step))
            there |= set(closing)
        expected = [id(step) for step in program.steps if step.kind not in (*VIEWS, "constant")]
        assert sorted(seen) == sorted(expected)


# How many walks over memory the forward and the backward pass of batch norm take; the scale of range needs no mean.
WALKS = {"l2": (3, 2), "l1": (3, 2), "linf": (3, 2), "top3": (3, 2), "range": (2, 2), "lp3": (3, 2), None: (2, 2)}


@pytest.mark.parametrize(("norm", "walks"), WALKS.items())
def test_a_norm_takes_as_many_walks_as_it_has_reductions_in_a_row(norm: str | None, walks: tuple[int, int]) -> None:
    outline = outline_of(norm, "batch", "fp16")
    programs = trace_forward(outline), trace_backward(outline)
    assert tuple(len(split(program, outline.reduction).passes) for program in programs) == walks


def test_the_extent_of_a_value_says_how_many_numbers_it_has() -> None:
    outline = outline_of("lp3", "batch", "fp16")
    program = trace_forward(outline)
    parts = split(program, outline.reduction)
    steps = {step.calls[0].operation: step for step in program.steps if step.calls}
    extents = {name: parts.extents[step.results[0].number] for name, step in steps.items() if step.results}
    assert extents["power"] == extents["divide"] == Extent.ELEMENT
    assert extents["mean.div"] == extents["dispersion.sum"] == extents["eps"] == Extent.GROUP
    assert extents["gamma"] == extents["beta"] == Extent.PARAMETER


def described(calls: Mapping[int, Any], ledger: Ledger) -> list[Any]:
    """Return all that calls say, with the sites of their rows."""
    sites = {id(ledger.row(site)): site for site in list(ledger)}
    return [
        [(*call._replace(row=None), None if call.row is None else sites[id(call.row)]) for call in calls[key]]
        for key in calls
    ]


@pytest.mark.parametrize("precision", ["fp16", "fp16/toward-zero;square=fp32;divide=reciprocal", "bf16;gradient=fp16"])
@pytest.mark.parametrize("norm", [None, "l1", "l2", "top10"])
def test_calls_that_a_program_lists_once_are_those_that_are_made_one_by_one(
    norm: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = trace_forward(outline_of(norm, "batch", precision))
    ledgers = Ledger(), Ledger()
    listing, single = (Arithmetic(precision, ledger=ledger).at("bn") for ledger in ledgers)
    for step in range(3):
        made = make_calls(program, listing)
        with monkeypatch.context() as patch:
            patch.setattr(whole_steps, "listed", lambda *arguments: None)
            wanted = make_calls(program, single)
        assert described(made, ledgers[0]) == described(wanted, ledgers[1]) and len(made) == len(wanted)
        assert list(ledgers[0].items()) == list(ledgers[1].items()) and ledgers[0].stamped == ledgers[1].stamped
        assert ledgers[0].first("underflow") == ledgers[1].first("underflow")
        for ar in (listing, single):
            ar.advance()
            assert ar.step == step + 1


def test_what_is_kept_with_an_arithmetic_is_not_pickled() -> None:
    ar = Arithmetic("fp16", ledger=Ledger())
    ar.kept["program"] = lambda: None
    again = pickle.loads(pickle.dumps(ar))
    assert not again.kept and again.precision == ar.precision


def test_what_is_kept_with_an_arithmetic_does_not_grow_without_end() -> None:
    ar = Arithmetic("fp16", ledger=Ledger())
    for _ in range(2 * MOST_KEPT):  # as many programs: of inputs of other sizes
        make_calls(trace_forward(outline_of("l2", "batch", "fp16")), ar)
    assert 0 < len(ar.kept) <= MOST_KEPT
