"""The Precision grammar: parse(str(p)) == p, defaults, roles, errors."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import normstab as ns
from normstab.numerics.recipes import RECIPES
from normstab.numerics.scaled.scaled_format import Scaled
from normstab.numerics.spelling.cautions import cautions
from normstab.numerics.spelling.typed_names import OTHER_NAMES

FORMAT_NAMES = [*ns.FORMATS, "e6m9", "q7.8", "e4m3fn:saturate", "q3.4:wrap"]
ROUNDINGS = ["nearest", "nearest-away", "toward-zero", "up", "down", "to-odd", "stochastic", "stochastic:8"]
ORDERS = ["", ":sequential", ":pairwise", ":blocked64", ":lanes16"]
MATMULS = ["native", "exact", "fp16:sequential+fused", "fp32", "fp16:blocked8+fused"]
SCALED_FORMATS = [
    "e4m3fn",
    "tf32",
    "e4m3fn@row",
    "e5m2:saturate@tensor",
    "int8@row",
    "int4@block64+zero",
    "int7@block32:e8m0",
    "q1.6@block32:e8m0:even",
    "e2m1@block16:e4m3fn/stochastic",
    "e2m1@tile16:e4m3fn",
    "e4m3fn@tile128:fp32:rceil/up",
    "e4m3fn@delayed16",
]
MACHINE_KEYS = {
    "casts": st.sampled_from(["honour", "ignore"]),
    "norm": st.sampled_from(["each", "wide"]),
    "operand": st.sampled_from(SCALED_FORMATS),
    "operand.input": st.sampled_from(SCALED_FORMATS),
    "operand.weight": st.sampled_from(SCALED_FORMATS),
    "operand.grad": st.sampled_from([*SCALED_FORMATS, "none"]),
    "master": st.sampled_from(["on", "off"]),
    "autocast": st.sampled_from(["none", "cuda-fp16", "cuda-bf16"]),
    "collective": st.sampled_from(["none", "fp16", "bf16:tree", "e4m3fn:saturate:ring"]),
}
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
    for key in draw(st.lists(st.sampled_from(list(MACHINE_KEYS)), unique=True)):
        text += f";{key}={draw(MACHINE_KEYS[key])}"
    return text


@given(specs())
def test_parse_of_str_is_the_same_precision(text):
    precision = ns.Precision.parse(text)
    assert ns.Precision.parse(str(precision)) == precision
    assert str(ns.Precision.parse(str(precision))) == str(precision)


@given(st.sampled_from(list(RECIPES)), st.dictionaries(st.sampled_from(list(MACHINE_KEYS)), st.none()), st.data())
def test_parse_of_str_is_the_same_recipe(name, keys, data):
    text = name + "".join(f";{key}={data.draw(MACHINE_KEYS[key])}" for key in keys)
    precision = ns.Precision.parse(text)
    assert precision.recipe == name
    assert str(precision).split(";")[0] == name
    assert ns.Precision.parse(str(precision)) == precision


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_row_and_prints_as_its_name(name):
    row, recipe = ns.Precision.parse(RECIPES[name].precision), ns.Precision.parse(name)
    assert str(recipe) == name
    assert replace(recipe, recipe="") == row
    assert recipe != row


def test_keys_after_a_recipe_change_one_thing():
    changed = ns.Precision.parse("fp8-rowwise;master=off;operand.grad=none")
    assert str(changed) == "fp8-rowwise;operand.grad=none;master=off"
    assert (changed.master, changed.operand_grad) == ("off", None)
    assert changed.operand_input == ns.Precision.parse("fp8-rowwise").operand_input


def test_a_recipe_in_another_rounding_keeps_its_keys_and_loses_its_name():
    changed = replace(ns.Precision.parse("mxfp8"), rounding=ns.Rounding.parse("up"))
    assert changed.recipe == "" and str(changed).startswith(
        "bf16/up/fp32:lanes64;norm=wide;operand=e4m3fn@block32:e8m0"
    )


def test_uniform_is_the_precision_that_ignores_casts():
    uniform = ns.Precision.parse("uniform:fp16;square=fp32")
    assert uniform == ns.Precision.parse("fp16;square=fp32;casts=ignore")
    assert str(uniform) == "uniform:fp16/nearest/fp32:lanes64;square=fp32"
    assert ns.Precision.parse("uniform:mxfp8") == ns.Precision.parse("mxfp8;casts=ignore")


def test_keys_at_their_default_are_not_written():
    text = "fp16;casts=honour;norm=each;operand=none;master=on;autocast=none;collective=none"
    assert str(ns.Precision.parse(text)) == "fp16/nearest/fp32:lanes64"


def test_the_two_operands_are_written_as_one_where_they_are_alike():
    alike = ns.Precision.parse("bf16;operand.weight=int8@row;operand.input=int8@row")
    assert str(alike) == "bf16/nearest/fp32:lanes64;operand=int8@row"
    assert alike == ns.Precision.parse("bf16;operand=int8@row") and alike.operand_grad is None


@pytest.mark.parametrize("text", SCALED_FORMATS)
def test_a_scaled_format_prints_as_it_is_written(text):
    assert Scaled.parse(str(Scaled.parse(text))) == Scaled.parse(text)
    assert str(Scaled.parse(text)) == text.replace("stochastic", "stochastic:16")


def test_scaled_formats_fill_in_what_is_left_out():
    assert Scaled.parse("e4m3fn@block32:e8m0") == Scaled.parse("e4m3fn@block32:e8m0:floor")
    assert Scaled.parse("e4m3fn@row") == Scaled.parse("e4m3fn@row:fp32:max")
    assert Scaled.parse("int8") == Scaled.parse("int8@tensor")
    assert Scaled.parse("e4m3fn").granule == "none"


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
        ("fp16;norm=wyde", "wide"),
        ("fp16;casts=honor", "honour"),
        ("fp16;autocast=fp16", "cuda-fp16"),
        ("mxfp9", "mxfp8"),
        ("mxfp8/nearest", "recipe"),
        ("native;norm=wide", "native"),
        ("fp16;operand=int8@rwo", "row"),
        ("fp16;operand=int9@row", "N <= 8"),
        ("fp16;operand=e4m3fn@block", "K >= 1"),
        ("fp16;operand=e4m3fn@row32", "K >= 1"),
        ("fp16;operand=e4m3fn@block32:e8m0:max", "power of two"),
        ("fp16;operand=e4m3fn@block32:e8m0:flor", "floor"),
        ("fp16;operand=e4m3fn@block32:floor", "after a scale"),
        ("fp16;operand=e2m1@block16:e4m3fn:floor", "max"),
        ("fp16;operand=e2m1@block16:q3.4", "floating-point"),
        ("fp16;operand=e4m3fn@row+zero", "intN"),
        ("native/nearest", "native"),
        ("native;square=fp32", "native"),
    ],
)
def test_a_malformed_precision_is_refused_and_told_what_is_allowed(text, names):
    with pytest.raises(ns.NormstabError) as error:
        ns.Precision.parse(text)
    assert names in str(error.value)


def test_a_name_from_elsewhere_that_means_one_format_is_that_format():
    assert ns.parse_format("float16") == ns.FORMATS["fp16"]
    assert ns.parse_format(" Float8_E5M2:saturate") == ns.parse_format("e5m2:saturate")
    assert str(ns.Precision.parse("float32/nearest/double;square=half")) == ("fp32/nearest/fp64:lanes64;square=fp16")
    assert ns.Precision.parse("uniform:float16") == ns.Precision.parse("uniform:fp16")
    assert ns.Precision.parse("float16/nearest/float32") == ns.Precision.parse("fp16")


def test_a_name_from_elsewhere_that_is_a_dtype_of_torch_holds_its_numbers():
    for name in OTHER_NAMES:
        dtype = getattr(torch, name, None)
        if isinstance(dtype, torch.dtype):
            limits, format = torch.finfo(dtype), ns.parse_format(name)
            assert (limits.max, limits.smallest_normal) == (format.max, format.min_normal)


def test_a_recipe_wins_over_the_format_of_that_name():
    assert [ns.Precision.parse(name).recipe for name in ("half", "bfloat16")] == ["half", "bfloat16"]


@pytest.mark.parametrize(
    ("name", "offers"),
    [
        ("float16", ["fp16", "half"]),
        ("f16;square=fp32", ["fp16", "half"]),
        ("fp8", ["e4m3fn", "e5m2", "fp8-tensorwise", "mxfp8"]),
        ("fp4", ["nvfp4", "mxfp4", "e2m1"]),
        ("fp6", ["mxfp6-e2m3", "mxfp6-e3m2", "e2m3", "e3m2"]),
        ("amp", ["amp-fp16", "amp-bf16"]),
        ("16-mixed", ["amp-fp16"]),
        ("bf16-true", ["bfloat16"]),
    ],
)
def test_a_name_of_several_machines_asks_which_and_every_offer_parses(name, offers):
    with pytest.raises(ns.NormstabError, match="did you mean") as caught:
        ns.Precision.parse(name)
    words = re.split(r"[\s,?():]+", str(caught.value).partition("did you mean")[2])
    assert [offer for offer in offers if offer in words] == offers
    assert all(ns.Precision.parse(offer) for offer in offers)


@pytest.mark.parametrize("name", ["fp8", "fp16/nearest/fp8", "fp16;sum=fp4"])
def test_a_format_that_is_several_is_asked_about(name):
    with pytest.raises(ns.NormstabError, match="did you mean e"):
        ns.parse_format(name) if name == "fp8" else ns.Precision.parse(name)


@pytest.mark.parametrize("text", ["e4m3", "fp16/nearest/e4m3", "bf16;operand=e4m3@row", "bf16;sum=e4m3:inf"])
def test_e4m3_with_infinity_comes_with_the_question_whether_e4m3fn_was_meant(text):
    assert cautions([ns.Precision.parse(text)]) == ["e4m3 has max 240 and inf; did you mean e4m3fn, max 448?"]
    assert (ns.parse_format("e4m3").max, ns.parse_format("e4m3fn").max) == (240, 448)


def test_a_wrong_name_is_answered_with_the_nearest_format_or_recipe():
    for name, nearest in (("fp17", "fp16"), ("nvfp5", "nvfp4"), ("e4m3b", "e4m3fn"), ("bfloat6", "bfloat16")):
        with pytest.raises(ns.NormstabError, match=f"did you mean '{nearest}'"):
            ns.Precision.parse(name)


@pytest.mark.parametrize("text", ["e4m3fn", "e5m2", "fp8-rowwise", "native", "fp16;sum=e4m3:saturate"])
def test_what_is_not_mistaken_has_no_caution(text):
    assert cautions([ns.Precision.parse(text)]) == []
