"""Sentences of a report about one run."""

from normstab.numerics.ledger import Tally
from normstab.report.sections import precision_lost
from tests.assess.synthetic import make_run


def test_what_additions_lost_is_said_with_the_site_that_lost_most():
    sites = {
        "bn1.mean.sum[forward]": Tally(100, absorbed=7),
        "bn2.mean.sum[forward]": Tally(100, absorbed=1_200, cancelled=3),
        "fc.add[forward]": Tally(100),
    }
    assert precision_lost(make_run(sites=sites)) == [
        "in the steps that were probed 1,207 addends changed nothing, most at `bn2.mean.sum[forward]`: 1,200",
        "in the steps that were probed 3 sums lost half of their digits or more at `bn2.mean.sum[forward]`",
    ]


def test_where_nothing_was_lost_nothing_is_said():
    assert precision_lost(make_run(sites={"fc.add[forward]": Tally(100, overflow=3)})) == []
