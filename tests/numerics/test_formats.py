"""Formats as data: presets, grammar, names, errors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import normstab as ns

# name: p, emin, emax, max, least positive value. Sources: IEEE 754-2019; OCP OFP8 1.0 and MX 1.0; ONNX float8 page.
TABLE = {
    "fp64": (53, -1022, 1023, 1.7976931348623157e308, 5e-324),
    "fp32": (24, -126, 127, 3.4028234663852886e38, 2.0**-149),
    "tf32": (11, -126, 127, (2 - 2.0**-10) * 2.0**127, 2.0**-136),
    "fp16": (11, -14, 15, 65504.0, 2.0**-24),
    "bf16": (8, -126, 127, (2 - 2.0**-7) * 2.0**127, 2.0**-133),
    "e4m3fn": (4, -6, 8, 448.0, 2.0**-9),
    "e5m2": (3, -14, 15, 57344.0, 2.0**-16),
    "e4m3fnuz": (4, -7, 7, 240.0, 2.0**-10),
    "e5m2fnuz": (3, -15, 15, 57344.0, 2.0**-17),
    "e3m4": (5, -2, 3, 15.5, 2.0**-6),
    "e2m3": (4, 0, 2, 7.5, 0.125),
    "e3m2": (3, -2, 4, 28.0, 0.0625),
    "e2m1": (2, 0, 2, 6.0, 0.5),
}


# What the grammar of hardware adds.
ADDED = [
    *(
        "u0.8",
        "u8.0:wrap",
        "q-3.12",
        "q12.-4",
        "u16.-8:saturate-zero",
        "q15.16",
        "u16.15:wrap",
        "q3.4:saturate-symmetric",
    ),
    *("e9m10", "fp16:flush", "e4m3fn:saturate:flush", "e6m9:nan:flush", "e4m3fnuz:flush"),
]


@pytest.mark.parametrize("name", ns.FORMATS)
def test_preset_has_the_published_limits(name):
    found = ns.FORMATS[name]
    assert (found.precision, found.emin, found.emax, found.max, found.min_subnormal) == TABLE[name]


@pytest.mark.parametrize(
    "name", [*ns.FORMATS, "e6m9", "e2m2", "e8m23", "q7.8", "q0.8", "q24.0", "e4m3fn:saturate", "q3.4:wrap", *ADDED]
)
def test_a_format_prints_as_what_parses_to_it(name):
    found = ns.parse_format(name)
    assert ns.parse_format(str(found)) == found


def test_equality_ignores_names():
    assert ns.parse_format("e5m10") == ns.parse_format("fp16")
    assert hash(ns.parse_format("e5m10")) == hash(ns.parse_format("fp16"))
    assert str(ns.parse_format("e5m10")) == "fp16"


def test_presets_win_over_the_grammar():
    assert ns.parse_format("e2m1").max == 6.0  # the IEEE reading would be 3
    assert ns.parse_format("e3m2").overflow == "saturate"


@pytest.mark.parametrize("name", ["q7.8", "q0.8"])
def test_fixed_point_has_the_two_s_complement_range(name):
    found = ns.parse_format(name)
    integer, fraction = (int(part) for part in name[1:].split("."))
    assert (found.min, found.max) == (-(2.0**integer), 2.0**integer - 2.0**-fraction)
    assert found.overflow == "saturate"


@pytest.mark.parametrize(
    "text",
    [
        "e0m10",
        "e1m5",
        "e12m3",
        "e5m0",
        "e5m24",
        "e11m60",
        "q-1.1",
        "q20.12",
        "u200.-190",
        "fp16:flush:flush:saturate",
        "q0.0",
        "fp61",
        "",
        "e5m",
        "q7",
        "fp16:wrap",
        "q7.8:inf",
        "fp16:",
        "fp16:sat",
        "٣",
        None,
        16,
    ],
)
def test_a_malformed_format_is_refused_with_what_was_found_and_what_is_allowed(text):
    with pytest.raises(ns.NormstabError) as error:
        ns.parse_format(text)
    assert repr(text) in str(error.value) or str(text) in str(error.value)
    assert "(" in str(error.value) or "not" in str(error.value)
    assert isinstance(error.value, ValueError)


def test_a_near_name_is_suggested():
    with pytest.raises(ns.NormstabError, match="did you mean 'bf16'"):
        ns.parse_format("bf61")


def test_a_format_is_a_value():
    with pytest.raises(AttributeError):
        ns.parse_format("fp16").max = 1.0


@st.composite
def made_by_hand(draw):
    """A Format that need not have a name: any precision, range, largest value and set of exceptions."""
    p, emin = draw(st.integers(1, 24)), draw(st.integers(-255, 200))
    emax = draw(st.integers(emin, 255))
    whole = draw(st.integers(2 ** (p - 1), 2**p - 1))
    policy = draw(st.sampled_from(["inf", "nan", "saturate"]))
    has = draw(st.booleans()), draw(st.booleans())
    return ns.Format("by hand", p, emin, emax, float(whole) * 2.0 ** (emax - p + 1), policy, *has)


@given(made_by_hand())
def test_every_format_that_can_be_made_prints_as_what_parses_to_it(made):
    assert ns.parse_format(str(made)) == made
    precision = ns.Precision.parse(f"fp16/nearest/{made}:blocked8;square={made};matmul={made}")
    assert precision.square == made == precision.accumulation.format == precision.matmul.format
    assert ns.Precision.parse(str(precision)) == precision


@pytest.mark.parametrize("name", [*ns.FORMATS, *ADDED, "e6m9", "e2m2:saturate"])
def test_a_format_without_subnormals_is_not_taken_for_the_one_with_them(name):
    found = ns.parse_format(name)
    if isinstance(found, ns.Format) and not found.is_identity:
        flushed = replace(found, has_subnormals=False)
        assert str(flushed).endswith(":flush") and ns.parse_format(str(flushed)) == flushed
        tiny = torch.tensor([found.min_normal / 2], dtype=torch.float64)
        assert ns.cast(tiny, str(flushed)).item() == 0


@pytest.mark.parametrize(
    "fields",
    [
        (11, -14, 15, 65500.0),  # not a value of 11 bits
        (11, -14, 16, 65504.0),  # not the exponent of its largest value
        (52, -14, 15, 65504.0),  # a product of such numbers is not exact in float64
        (11, -300, 15, 65504.0),
        (11, -14, 15, float("inf")),
        (0, -14, 15, 32768.0),
    ],
)
def test_a_format_that_would_be_rounded_wrongly_is_refused_when_made(fields):
    with pytest.raises(ns.NormstabError):
        ns.Format("wrong", *fields)


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("u0.8", 0.0, 255 / 256),
        ("q-3.12", -1 / 8, 1 / 8 - 2**-12),
        ("q12.-4", -4096.0, 4080.0),
        ("q3.4:saturate-symmetric", -7.9375, 7.9375),
        ("u16.15", 0.0, 2**16 - 2**-15),
    ],
)
def test_fixed_point_beyond_the_classic_kind_has_its_range(name, low, high):
    found = ns.parse_format(name)
    assert (found.min, found.max) == (low, high)
