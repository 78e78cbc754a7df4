"""The Precision grammar: parse(str(p)) == p, defaults, roles, errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import normstab as ns

FORMAT_NAMES = [*ns.FORMATS, "e6m9", "q7.8", "e4m3fn:saturate", "q3.4:wrap"]
ROUNDINGS = ["nearest", "nearest-away", "toward-zero", "up", "down", "to-odd", "stochastic", "stochastic:8"]
ORDERS = ["", ":sequential", ":pairwise", ":blocked64", ":lanes16"]
MATMULS = ["native", "exact", "fp16:sequential+fused", "fp32", "fp16:blocked8+fused"]
ROLES = ["square", "sum", "variance", "reciprocal", "gradient", "parameter", "optimizer"]

formats = st.sampled_from(FORMAT_NAMES)
accumulations = st.one_of(
    st.sampled_from(["exact", "native"]), st.builds(str.__add__, formats, st.sampled_from(ORDERS))
)


@st.composite
def specs(draw):
    text = draw(formats)
    if draw(st.booleans()):
        text += "/" + draw(st.sampled_from(ROUNDINGS))
        if draw(st.booleans()):
            text += "/" + draw(accumulations)
    for role in draw(st.lists(st.sampled_from(ROLES), unique=True)):
        text += f";{role}={draw(formats)}"
    if draw(st.booleans()):
        text += f";mean={draw(st.sampled_from(['sum', 'welford', 'blockwise2', 'blockwise64']))}"
    if draw(st.booleans()):
        text += f";divide={draw(st.sampled_from(['direct', 'reciprocal']))}"
    if draw(st.booleans()):
        text += f";matmul={draw(st.sampled_from(MATMULS))}"
    return text


@given(specs())
def test_parse_of_str_is_the_same_precision(text):
    precision = ns.Precision.parse(text)
    assert ns.Precision.parse(str(precision)) == precision
    assert str(ns.Precision.parse(str(precision))) == str(precision)


def test_a_bare_format_means_nearest_with_fp32_lanes():
    assert ns.Precision.parse("fp16") == ns.Precision.parse("fp16/nearest/fp32:lanes64")
    assert str(ns.Precision.parse("fp16")) == "fp16/nearest/fp32:lanes64"
    assert str(ns.Precision.parse("fp16/stochastic/fp16:blocked64")) == "fp16/stochastic:16/fp16:blocked64"


def test_fp64_accumulates_in_fp64_unless_told_otherwise():
    assert str(ns.Precision.parse("fp64")) == "fp64/nearest/fp64:lanes64"


def test_a_role_has_its_own_format_and_the_others_the_compute_format():
    precision = ns.Precision.parse("fp16;square=fp32")
    assert precision.format("square") == ns.parse_format("fp32")
    assert precision.format("variance") == precision.format() == ns.parse_format("fp16")


def test_an_object_will_do_wherever_a_string_does():
    precision = ns.Precision.parse("bf16/up")
    assert ns.Precision.parse(precision) is precision
    assert ns.Arithmetic(ns.parse_format("bf16"), rounding=ns.Rounding.parse("up")).precision == precision


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("fp16/neerest", "nearest"),
        ("fp16/stochastic:33", "32"),
        ("fp16/stochastic:0", "1 <="),
        ("fp16/stochastic:x", "whole number"),
        ("fp16/up:3", "random bits"),
        ("fp16/nearest/fp16:sequentiel", "sequential"),
        ("fp16/nearest/fp16:blocked", "K >= 1"),
        ("fp16/nearest/fp16:pairwise4", "K >= 1"),
        ("fp16/nearest/fp16:pairwise+kahan", "sequential"),
        ("fp16/stochastic/fp16:sequential+kahan", "nearest"),
        ("fp16/nearest/fp16:sequential+fused", "matmul"),
        ("fp16;matmul=fp16:pairwise+fused", "sequential or blockedK"),
        ("fp16;squares=fp32", "square"),
        ("fp16;square", "KEY=VALUE"),
        ("fp16;square=fp32;square=fp16", "twice"),
        ("fp16;mean=blockwise1", "K >= 2"),
        ("fp16;divide=fast", "reciprocal"),
        ("fp16/nearest/fp32/x", "COMPUTE"),
        ("fp16//fp32", "empty part"),
        ("", "COMPUTE"),
        ("native/nearest", "native"),
        ("native;square=fp32", "native"),
    ],
)
def test_a_malformed_precision_is_refused_and_told_what_is_allowed(text, names):
    with pytest.raises(ns.NormstabError) as error:
        ns.Precision.parse(text)
    assert names in str(error.value)
