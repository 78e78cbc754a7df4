"""Rules: one grammar of keys, the most specific first, for precisions and for norms."""

import pytest

from normstab.errors import NormstabError
from normstab.numerics.rules import OUTSIDE, Rules, plain_operation, precision_rules

# Each key's value is the key itself, so that what is found says which rule decided.
LADDER = [
    "layer1.0.conv::add", r"re:layer1\..*::add", "op:add", "layer1.0.conv", r"re:.*\.conv", "layer1.0", "layer1", "",
    "_default",
]  # fmt: skip


def ruled(*keys):
    return Rules({key: key for key in keys}, "none")


@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_the_most_specific_of_the_rules_that_are_there_decides(rung):
    rules = ruled(*reversed(LADDER[rung:]))
    assert rules.of("layer1.0.conv", "add") == LADDER[rung]


def test_no_rule_leaves_what_was_given():
    assert ruled().of("layer1", "add") == ruled("layer2").of("layer1") == "none"
    assert ruled("layer2").key_for("layer1") == "_default"


def test_a_pattern_is_of_the_whole_name_and_the_first_written_wins():
    rules = ruled(r"re:bn\d", "re:bn.*")
    assert (rules.of("bn1"), rules.of("bn1x"), rules.of("xbn1")) == (r"re:bn\d", "re:bn.*", "none")


def test_the_nearest_module_around_decides_by_name_or_by_pattern():
    assert ruled("layer1", r"re:layer1\.0").of("layer1.0.bn1.parametrizations") == r"re:layer1\.0"
    assert ruled("layer1").of("layer10.bn1") == "none"


def test_code_outside_every_module_is_in_no_module():
    rules = ruled("", "re:.*", "re:.*::add", "op:mul", OUTSIDE)
    assert rules.of(OUTSIDE) == rules.of(OUTSIDE, "add") == OUTSIDE
    assert rules.of(OUTSIDE, "mul") == "op:mul"
    assert ruled("", "re:.*").of(OUTSIDE) == "none"


def test_an_operation_is_meant_without_underscores_and_suffixes():
    rules = ruled("op:softmax", "bn1::dispersion.sum")
    assert rules.of("attention", "_softmax") == "op:softmax"
    assert rules.of("bn1", "dispersion.sum.load") == "bn1::dispersion.sum"
    assert plain_operation("eps.const") == "eps"
    assert ruled("op:_softmax").of("attention", "softmax") == "op:_softmax"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("conv2", r"'conv2': the model has no module 'conv2'; did you mean 'conv1'\? \(\"\", conv1, layer1\.0\)"),
        ("conv2::add", "no module 'conv2'"),
        ("re:bn.*", "'re:bn.*': no match"),
        ("re:bn.*::add", "no match"),
    ],
)
def test_a_rule_that_meets_nothing_is_an_error_that_lists_what_there_is(key, message):
    with pytest.raises(NormstabError, match=message):
        ruled(key).check(["", "conv1", "layer1.0"])


@pytest.mark.parametrize("key", ["conv1", "layer1", "", OUTSIDE, "op:add", "re:layer1", "conv1::add", "_default"])
def test_a_rule_that_meets_something_is_none(key):
    ruled(key).check(["", "conv1", "layer1.0"])


@pytest.mark.parametrize(("key", "message"), [("re:(", "no regular expression"), ("op:", "no op"), ("a::", "no op")])
def test_a_key_that_is_none_is_refused(key, message):
    with pytest.raises(NormstabError, match=message):
        ruled(key)


def test_precisions_are_parsed():
    rules = precision_rules({"fc": "fp32"}, "fp16")
    assert [str(precision) for precision in rules.values()] == [
        "fp16/nearest/fp32:lanes64",
        "fp32/nearest/fp32:lanes64",
    ]
    assert rules.of("fc").compute == rules.values()[1].compute
