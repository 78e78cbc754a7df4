"""The first screen: one answer in every form, and a terminal's table that never wraps."""

from dataclasses import replace

import pytest

from normstab.assess.causes.blame import Blame
from normstab.report.answer import answer
from normstab.report.sections import headline
from normstab.terminal.summary import summary
from tests.assess.synthetic import story
from tests.report.made import made_assessment


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    runs = story(seeds=(0, 1, 2), scales=(1, 256), norms=("l2", "l1"))
    return made_assessment(tmp_path_factory.mktemp("made"), runs=runs)


def test_the_answer_names_what_fails_where_and_what_trains(found):
    text = answer(found)
    assert text.startswith(
        "Fails in 1 of 8 settings: norm l2, precision fp16, input_scale 256 (COLLAPSED, first at `stem"
    )
    assert "in step 0). Trains in 7 of 8 settings: " in text and "and 4 more." in text
    assert text.endswith("Tried here, and stable: keep the squares in fp32.")


def test_every_form_tells_the_answer_and_the_terminal_tells_it_last(found):
    assert headline(found)[0] == f"**{answer(found)}**"
    assert summary(found, width=80).endswith(answer(found).replace("`", ""))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal_and_keeps_the_verdict(found, width):
    table = summary(found, width=width).partition("\n\n")[0].splitlines()
    assert len(table) == 2 + len(found.judged) and all(len(line) <= width for line in table)
    assert "verdict" in table[0] and ("first offence" in table[0]) == (width >= 80)


def test_one_column_that_has_no_room_takes_no_other_with_it(found):
    long = "encoder.layers.11.attention.output.layer_norm.dispersion.sum[backward]"
    blamed = Blame(long, 0, "overflow", 1, 1)
    groups = tuple(replace(g, cells=tuple(replace(c, blame=blamed) for c in g.cells)) for g in found.groups)
    head = summary(replace(found, groups=groups), width=110).splitlines()[0]
    assert "first offence" not in head and "accuracy" in head and "points lost" in head
    every = summary(replace(found, groups=groups), width=10**6)
    assert long in every and "seeds" in every.splitlines()[0]


def test_rows_are_named_by_what_differs(found):
    one_norm = made_assessment_of_one_norm(found)
    assert "norm" not in summary(one_norm, width=120).splitlines()[0].split()


def made_assessment_of_one_norm(found):
    return replace(found, groups=tuple(g for g in found.groups if g.coordinates.get("norm") == "l2"))
