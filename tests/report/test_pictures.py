"""Every picture of a report as a browser draws it: no text over another, over a curve or cut off, none small."""

from functools import partial

import numpy as np
import pytest

from normstab.experiment.scenario.document import Claim, Plot
from normstab.report.html import render_html
from normstab.report.markdown import render_report
from normstab.report.page import render_page
from normstab.report.pictures.claim_plots import KINDS, claim_plot
from normstab.report.pictures.panels import Frame, Sketch, small_multiples
from normstab.report.pictures.site_maps import _map
from tests.report import browser
from tests.report.made import made_assessment
from tests.report.test_page import swept_assessment

pytestmark = pytest.mark.skipif(browser.BROWSER is None, reason=f"no browser: none of {', '.join(browser.NAMES)}")
LEAST_TEXT, LEAST_PANEL = 9.0, 150  # pixels
LONG = "fp16/nearest/fp16:sequential;square=fp32;variance=fp32;mean=blockwise64: INCONCLUSIVE"


def curves(count, axes):
    for index in range(count):
        axes.plot([0, 1], [index, index + 1], label=f"{index}: {LONG}")


def bars(count, axes):
    axes.bar(range(count), np.linspace(10, 99, count), label="accuracy of a long name, with its unit")


def extreme_pictures():
    """Grids of every size, with names as long as the longest of the shipped reports and longer."""
    for panels, lines, columns in ((1, 1, 1), (1, 6, 1), (3, 6, 2), (4, 1, 2), (3, 2, 3), (2, 6, 2)):
        sketches = [Sketch(f"{LONG}, panel {i}", partial(curves, lines)) for i in range(panels)]
        frame = Frame("the step of the training", "smoothed loss", note=f"{LONG} " * 3, columns=columns, ylim=(0, 9))
        yield f"curves {panels} {lines} {columns}", small_multiples(sketches, frame)
    for places, name in ((1, LONG), (4, "l2"), (12, "bwn_linf"), (30, "l2"), (30, LONG)):
        sketch = Sketch("", partial(bars, places), [f"{name}{i}" for i in range(places)])
        yield f"bars {places} {name[:4]}", small_multiples([sketch], Frame("variant", "accuracy, %", columns=1))
    for rows, columns in ((1, 1), (24, 12), (3, 12)):
        rates = np.logspace(-7, 0, rows * columns).reshape(rows, columns)
        sites = [f"encoder.layers.{i}.attention.self.normalisation.dispersion.sum[backward]" for i in range(rows)]
        yield f"map {rows} {columns}", _map("overflow", sites, rates, [f"norm l2, precision {LONG}"] * columns)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    found = made_assessment(folder)
    drawn = {**render_report(found).files, **render_page("made_page", {"../made/report.md": found}).files}
    for kind in KINDS:
        source = swept_assessment(folder) if kind == "sweep" else found
        drawn[f"claim {kind}"] = claim_plot(Claim("P1", "text", plot=Plot(kind)), source)
    return browser.measured({**drawn, **dict(extreme_pictures())}, folder)


def told(found, fault):
    return {name: wrong for name, picture in found.items() if (wrong := fault(picture))}


def test_no_text_lies_over_another(pictures):
    assert told(pictures, lambda picture: browser.overlapping(picture["texts"])) == {}


def test_no_text_is_cut_off(pictures):
    assert told(pictures, browser.clipped) == {}


def test_no_text_is_small(pictures):
    assert told(pictures, lambda picture: [t["text"] for t in picture["texts"] if t["px"] < LEAST_TEXT]) == {}


def test_no_legend_covers_a_curve(pictures):
    assert sum(text["legend"] for picture in pictures.values() for text in picture["texts"]) > 50
    assert told(pictures, browser.legends_over_panels) == {}


def test_no_panel_is_small_and_no_picture_wider_than_a_page(pictures):
    curves = {name: picture for name, picture in pictures.items() if "map" not in name and "sites" not in name}
    for name, picture in curves.items():
        sides = [(right - left, below - top) for left, top, right, below in picture["panels"]]
        assert sides and min(min(side) for side in sides) >= LEAST_PANEL, name
    assert max(picture["size"][0] for picture in pictures.values()) <= 731


def test_the_measurements_find_what_is_wrong(tmp_path):
    texts = '<text x="10" y="20" font-size="12">one text</text><text x="14" y="22" font-size="8">another</text>'
    wrong = f'<svg width="200" height="40">{texts}<text x="180" y="20" font-size="12">beyond</text></svg>'
    found = browser.measured({"wrong": wrong}, tmp_path)["wrong"]
    assert browser.overlapping(found["texts"]) == [("one text", "another")]
    assert browser.clipped(found) == ["beyond"]
    assert [text["px"] for text in found["texts"]] == pytest.approx([12, 8, 12])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_html_report_fits_its_page_and_follows_the_readers_theme(tmp_path, scheme):
    page = tmp_path / "report.html"
    page.write_text(render_html(made_assessment(tmp_path)), encoding="utf-8")
    wide, background, ink = browser.laid_out(page, scheme)
    assert wide <= 1200
    assert (sum(background) < sum(ink)) == (scheme == "dark")
