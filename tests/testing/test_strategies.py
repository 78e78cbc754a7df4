"""What the strategies promise: values of the format, every kind, and the troubles that norms fail on."""

import subprocess
import sys

import pytest
import torch
from hypothesis import find, given
from hypothesis import strategies as st

import normstab as ns
from normstab.errors import NormstabError
from normstab.testing import strategies as ns_st


@given(data=st.data(), format=ns_st.formats(), kind=st.sampled_from(list(ns_st.KINDS)))
def test_tensors_in_a_format_are_representable(data, format, kind):
    x = data.draw(ns_st.tensors_in(format, shape=(5, 3), kind=kind))
    assert x.shape == (5, 3)
    assert torch.equal(ns.cast(x, format), x)


@given(x=ns_st.tensors_in("fp16", shape=(64, 8)), precision=ns_st.precisions())
def test_the_documented_example_draws(x, precision):
    assert x.dtype == torch.float32 and ns.Precision.parse(str(precision)) == precision


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3fn", "q7.8"])
@given(data=st.data())
def test_near_ties_lie_within_one_float64_of_a_midpoint(name, data):
    x = data.draw(ns_st.tensors_near_ties(name, shape=(16,)))
    down, up = (ns.cast(x, f"{name}", rounding=mode) for mode in ("down", "up"))
    inside = x.abs() < ns.parse_format(name).max
    middle = (down + up) / 2
    near = torch.nextafter(middle, -x.sign() * torch.inf), middle, torch.nextafter(middle, x.sign() * torch.inf)
    assert bool((torch.stack([x == n for n in near]).any(0) | ~inside).all())


@given(st.data())
def test_tensors_for_norms_are_representable_and_have_a_trouble_per_channel(data):
    x = data.draw(ns_st.tensors_for_norms("fp16", shape=(6, 4, 2, 2)))
    assert x.shape == (6, 4, 2, 2) and torch.equal(ns.cast(x, "fp16"), x)


def test_a_constant_channel_and_an_overflowing_square_can_be_drawn():
    shape = (8, 1, 3)
    constant = find(
        ns_st.tensors_for_norms("fp16", shape=shape), lambda x: bool((x == x[0, 0, 0]).all()) and x[0, 0, 0] != 0
    )
    assert constant.std() == 0
    squared = find(ns_st.tensors_for_norms("fp16", shape=shape), lambda x: bool(ns.cast(x * x, "fp16").isinf().any()))
    assert squared.isfinite().all()


@given(
    st.from_type(ns.Precision), st.from_type(ns.Rounding), st.from_type(ns.Accumulation), st.from_type(ns.FixedFormat)
)
def test_types_resolve_through_the_entry_point(precision, rounding, accumulation, format):
    assert isinstance(precision, ns.Precision) and isinstance(rounding, ns.Rounding)
    assert isinstance(accumulation, ns.Accumulation) and isinstance(format, ns.FixedFormat)


def test_an_unknown_kind_is_refused():
    with pytest.raises(NormstabError, match="subnormal"):
        ns_st.tensors_in("fp16", shape=(2,), kind="subnormals").example()


def test_the_strategies_are_imported_alone_without_a_circle():
    code = (
        "import normstab.testing.strategies as s; from hypothesis import strategies as st; from normstab import Format"
    )
    code += "; assert st.from_type(Format).filter(lambda f: f.precision > 1) is not None and s.register"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
