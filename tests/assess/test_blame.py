"""The producer of the first inf or NaN is blamed, not the operation where it surfaced."""

from normstab.assess.causes.blame import blame
from normstab.assess.causes.remedies import GridTested, remedies_for
from normstab.assess.judgement import Judgement
from normstab.assess.runs import group_runs
from normstab.assess.verdicts import Verdict
from normstab.numerics.ledger import Tally
from tests.assess.synthetic import FP16, make_cell, make_run, nonfinite_run


def blamed(first, sites=None, **record):
    return blame(make_run(make_cell(precision=FP16), first=first, sites=sites, **record))


def test_an_inf_born_at_the_square_is_blamed_there_not_where_the_nan_surfaced():
    found = blame(nonfinite_run(make_cell(precision=FP16)))
    assert (found.site, found.step, found.counter) == ("stem.square[forward]", 3, "overflow")
    assert (found.count, found.of) == (40, 1000)


def test_propagators_alone_are_not_blamed():
    assert blamed({"inf_propagated": ("a.sum[forward]", 0), "nan_propagated": ("b.mul[forward]", 0)}) is None


def test_the_earlier_step_comes_first():
    found = blamed({"overflow": ("late.square[forward]", 9), "nan_produced": ("early.sqrt[forward]", 2)})
    assert (found.site, found.counter) == ("early.sqrt[forward]", "nan_produced")


def test_in_one_step_the_overflow_comes_before_the_nan_it_became():
    found = blamed({"nan_produced": ("b.sub[forward]", 4), "overflow": ("a.square[forward]", 4)})
    assert found.site == "a.square[forward]"


def test_in_one_step_the_forward_site_comes_before_the_backward_one():
    found = blamed({"overflow": ("a.grad[backward]", 4), "divide_by_zero": ("b.divide[forward]", 4)})
    assert found.site == "b.divide[forward]"


def test_it_says_where_the_inf_went_on():
    found = blamed({"overflow": ("a.square[forward]", 0), "inf_propagated": ("a.sum[forward]", 0)})
    assert "passed on to `a.sum[forward]`" in found.sentence


def test_without_overflow_the_worst_underflow_is_blamed():
    sites = {"a.grad[backward]": Tally(1000, underflow=500), "b.grad[backward]": Tally(1000, underflow=20)}
    found = blamed({}, sites, first_steps={"a.grad[backward]": {"underflow": 7}})
    assert (found.site, found.step, found.counter) == ("a.grad[backward]", 7, "underflow")


def test_a_trace_of_underflow_is_nobodys_fault():
    assert blamed({}, {"a.grad[backward]": Tally(100_000, underflow=99)}) is None


SQUARES, GRADIENTS = "b.square[forward]", "a.grad[backward]"
VANISHING = {GRADIENTS: Tally(1000, underflow=707), SQUARES: Tally(1000, overflow=3)}


def left_in(step, share=707, began=2):
    """Who is blamed for an overflow in step 74 of a run that left the reference's band in `step`."""
    run = make_run(
        make_cell(precision=FP16),
        first={"overflow": (SQUARES, 74)},
        sites={**VANISHING, GRADIENTS: Tally(1000, underflow=share)},
        first_steps={GRADIENTS: {"underflow": began}, SQUARES: {"overflow": 74}},
    )
    return blame(run, left=step).site


def test_an_overflow_after_the_run_had_gone_is_a_symptom_where_most_gradients_had_vanished():
    assert left_in(20) == GRADIENTS
    assert left_in(None) == SQUARES  # it never left
    assert left_in(90) == SQUARES  # the overflow came first
    assert left_in(20, share=300) == SQUARES  # too few vanished
    assert left_in(20, began=30) == SQUARES  # not before it left


def test_gradients_that_vanish_ask_for_range_before_other_squares():
    run = make_run(
        make_cell(precision=FP16),
        first={"overflow": (SQUARES, 74)},
        sites={
            GRADIENTS: Tally(1000, underflow=707, largest=2.0**-10, smallest=2.0**-40),
            SQUARES: Tally(1000, overflow=3, largest=2.0**17),
        },
        first_steps={GRADIENTS: {"underflow": 2}},
    )
    group = group_runs([make_run(), run], tolerance=0.01)[-1]
    names = [remedy.name for remedy in remedies_for(run, group, GridTested())]
    asked = [remedy.name for remedy in remedies_for(run, group, GridTested(), blamed=blame(run, left=20))]
    assert names.index("wide squares") < names.index("loss scale") and asked[:2] == ["loss scale", "bf16"]


def test_a_loss_that_no_counter_shows_is_said_to_be_of_precision():
    counted = judged(sites={GRADIENTS: Tally(1000)})
    assert counted.blame is None and counted.sentence.endswith("what was lost is precision")
    assert "precision" not in judged(sites={}).sentence  # nothing was emulated
    broken = judged(sites={GRADIENTS: Tally(1000)}, verdict=Verdict.NONFINITE)
    assert "precision" not in broken.sentence  # such as by an optimizer that was not simulated
    assert judged(sites={GRADIENTS: Tally(1000, underflow=900)}).sentence.count("First offence: underflow") == 1


def judged(sites, verdict=Verdict.DEGRADED):
    run = make_run(make_cell(precision=FP16), accuracy=0.5, sites=sites)
    return Judgement(run, verdict, "so many points below the reference", blame(run), {})
