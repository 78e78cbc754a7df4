"""What the plots show: of many sites the worst, of many settings the gravest in the grid's order, on any page."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from normstab.assess.verdicts import Verdict
from normstab.experiment.scenario.document import Claim, Plot
from normstab.numerics.ledger import Histogram
from normstab.report.pictures.claim_plots import claim_plot
from normstab.report.pictures.exponents import drawn_exponents
from normstab.report.pictures.panels import PAGE, inches, letters, wrapped
from normstab.report.pictures.plots import MOST_LINES, gravest_of, loss_plots, panels_of
from normstab.report.pictures.site_maps import MOST_SITES, STEPS, worst_sites
from normstab.report.pictures.svg import COLOURS, DARK_PAGE, INK, WHITE_PAGE
from tests.assess.synthetic import FP16, falling, make_cell, make_run, predictions, story
from tests.report.made import made_assessment


def test_a_rare_overflow_is_shown_among_much_underflow():
    sites = [f"layer{i}" for i in range(100)]
    overflow = {site: [1e-6 if site == "layer50" else 0.0] for site in sites}
    underflow = {site: [0.0 if site == "layer50" else 0.1 + i / 1000] for i, site in enumerate(sites)}
    shown = worst_sites(overflow, underflow)
    assert "layer50" in shown and len(shown) == MOST_SITES
    assert shown == sorted(shown, key=sites.index)


def test_overflow_does_not_crowd_out_underflow_nor_leave_rows_empty():
    sites = [f"layer{i}" for i in range(100)]
    everywhere = {site: [0.5] for site in sites}
    nowhere = {site: [0.0] for site in sites}
    only_last = nowhere | {"layer99": [1e-5]}
    assert "layer99" in worst_sites(everywhere, only_last)
    assert len(worst_sites(everywhere, nowhere)) == MOST_SITES
    assert worst_sites(nowhere, nowhere) == []


def test_a_constants_cast_never_crowds_out_an_operation():
    constants = {f"bn{i}.eps.const[forward]": [1.0] for i in range(100)}
    underflow = constants | {"bn1.square[forward]": [1e-3]}
    shown = worst_sites({site: [0.0] for site in underflow}, underflow)
    assert "bn1.square[forward]" in shown and len(shown) == MOST_SITES


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return made_assessment(tmp_path_factory.mktemp("made")).judged


def test_panels_stand_in_the_grids_order_and_the_gravest_stay(judged):
    panels = panels_of(judged)
    titles = [panel.title for panel in panels]
    assert titles == [f"norm {norm}, input_scale {scale}" for norm in ("l2", "l1", "linf") for scale in (1, 256)]
    kept = gravest_of(panels, 3)
    assert [panel.title for panel in kept] == sorted((panel.title for panel in kept), key=titles.index)
    assert "norm l2, input_scale 256" in [panel.title for panel in kept]
    assert max(group.verdict.value for group in kept[1].members) == Verdict.COLLAPSED.value


def test_a_panel_says_how_many_lines_it_has_no_room_for(judged):
    few = panels_of(judged)
    assert all(panel.left_out == 0 and panel.heading == panel.title for panel in few)
    groups = [
        SimpleNamespace(coordinates={"precision": f"e5m{bits}"}, is_reference=False, verdict=Verdict.STABLE)
        for bits in range(1, MOST_LINES + 4)
    ]
    (panel,) = panels_of(groups)
    assert len(panel.members) == MOST_LINES
    assert panel.heading == f"{panel.title} (3 more not drawn)".strip()


def test_a_crowded_picture_becomes_several_of_the_pages_width(judged):
    pictures = loss_plots(panels_of(judged))
    assert len(pictures) == 2, "six settings, four to a picture"
    for svg in pictures:
        width, _ = re.search(r'width="([0-9.]+)pt" height="([0-9.]+)pt"', svg).groups()
        assert float(width) == pytest.approx(72 * PAGE)


def test_backgrounds_are_transparent(judged):
    for svg in loss_plots(panels_of(judged)):
        assert not re.search(r"fill: (#ffffff|white)", svg)


def luminance(colour):
    """Source: WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels(colour)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def channels(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", [WHITE_PAGE, DARK_PAGE])
def test_colours_are_told_from_a_white_and_from_a_dark_page(page):
    assert min(contrast(colour, page) for colour in COLOURS) >= 3  # WCAG 2.2, 1.4.11: graphical objects
    assert contrast(INK, page) >= 4.3


def test_a_thousandth_is_not_as_red_as_a_third():
    colours = [[colour for least, colour in STEPS if share >= least][-1] for share in (1e-6, 1e-3, 0.03, 0.3, 0.9)]
    assert len(set(colours)) == 5
    assert all(a > b for a, b in zip(*(map(luminance, part) for part in (colours, colours[1:])), strict=False))


@pytest.mark.parametrize("text", ["fp16/nearest/fp16:sequential;mean=blockwise64: NONFINITE", "x" * 300, "a, b", ""])
def test_wrapped_text_fits_and_loses_no_letter(text):
    lines = wrapped(text, 1.5, 7.5).split("\n")
    assert max(inches(line, 7.5) for line in lines) <= 1.5
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_columns_have_letters_of_their_own():
    assert letters(3) == ["A", "B", "C"] and len(set(letters(200))) == 200 and letters(28)[-2:] == ["AA", "AB"]


def test_a_whisker_ends_where_no_accuracy_can_be(tmp_path):
    runs = [run for run in story(seeds=(0, 1, 2), scales=(1,), norms=("l2",)) if run.record.is_reference]
    for seed, accuracy in enumerate((0.1, 0.4, 0.99)):
        cell = make_cell("l2", FP16, seed, 1.0)
        runs.append(make_run(cell, predicted=predictions(accuracy, seed=seed), losses=falling(seed=seed)))
    svg = claim_plot(Claim("P1", "text", plot=Plot("bars", x="norm")), made_assessment(tmp_path, runs=runs))
    shown = [float(text.replace("−", "-")) for text in re.findall(r">(−?[0-9.]+)</text>", svg)]
    assert min(shown) >= 0 and max(shown) <= 120, "the interval of three such seeds is far wider than 0 .. 100 %"


def test_a_picture_of_exponents_leaves_out_the_least_hundredth_and_no_more():
    tail = Histogram(binades={-600: 50, -300: 50, -20: 4_900, 15: 5_000})
    assert drawn_exponents(tail) == [-20, 15]  # 100 of 10,000
    assert drawn_exponents(tail + Histogram(binades={-300: 2})) == [-300, -20, 15]
    assert drawn_exponents(Histogram()) == []
