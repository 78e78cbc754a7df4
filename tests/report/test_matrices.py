"""The tables of verdicts: a row and a column for each setting, with the reference of each."""

from dataclasses import replace

from normstab.report.sections import matrices
from tests.assess.synthetic import story
from tests.report.made import made_assessment


def place_of(run):
    return run.coordinates.get("input_scale"), run.seed


def with_references_of_l1(runs):
    """Let the cells of linf share the references of l1, as cells do whose references train the same."""
    wide = {place_of(run): run.id for run in runs if run.is_reference and run.coordinates["norm"] == "l1"}
    shared = []
    for run in runs:
        if run.coordinates["norm"] != "linf":
            shared.append(run)
        elif not run.is_reference:
            cell = {**run.record.cell, "reference_id": wide[place_of(run)]}
            shared.append(replace(run, record=replace(run.record, cell=cell)))
    return shared


def test_a_row_whose_reference_stands_in_another_row_shows_its_accuracy(tmp_path):
    found = made_assessment(tmp_path, runs=with_references_of_l1(story(scales=(1, 256))))
    for _, table in matrices(found):
        rows = {line.split("|")[1].strip(" *"): line.split("|")[2].strip() for line in table.splitlines()[2:]}
        assert rows["linf"] == rows["l1"] != ""
