"""The HTML page: self-contained, escaped, and alive in a real browser where one is installed."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from normstab.assess.assessment import assess
from normstab.assess.verdicts import Verdict
from normstab.report.html import render_html, write_html
from tests.assess.synthetic import story
from tests.report.made import SCENARIO, made_assessment, made_scenario


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render_html(made_assessment(tmp_path_factory.mktemp("made")))


class Addresses(HTMLParser):
    """The addresses a page would fetch, and whether its elements close."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "input", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_fetches_nothing_and_closes_what_it_opens(page):
    parser = Addresses()
    parser.feed(page)
    assert parser.open == []
    assert all(address.startswith("data:image/svg+xml;base64,") for address in parser.found)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)


def test_rendering_twice_gives_the_same_bytes(page, tmp_path):
    assert render_html(made_assessment(tmp_path)) == page


def test_what_a_scenario_says_cannot_become_markup(tmp_path):
    text = SCENARIO.replace("Does L1 batch norm", "</script><b>Does</b> L1 batch norm")
    page = render_html(assess(story(seeds=(0,)), made_scenario(tmp_path, text)))
    assert "<b>Does</b>" not in page and "&lt;b&gt;Does" in page


def test_the_curves_are_json_with_the_band_and_a_line_per_seed(page):
    source = re.search(r'id="curves">(.*?)</script>', page, flags=re.DOTALL).group(1)
    panels = json.loads(source)["panels"]
    assert len(panels) == 6
    assert all(len(panel["lines"]) == 6 and panel["band"] for panel in panels)


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
PROBE = """
<script>
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const rows = () => Array.from(document.querySelectorAll("#cells tbody tr:not(.more)"));
const headings = Array.from(document.querySelectorAll("#cells th"));
const accuracy = headings.findIndex((heading) => heading.textContent === "accuracy");
click(headings[accuracy]);
const rising = rows().map((row) => Number(row.cells[accuracy].dataset.key));
click(headings[accuracy]);
const falling = rows().map((row) => Number(row.cells[accuracy].dataset.key));
click(rows()[0]);
const details = document.querySelector("#cells tr.more pre").textContent;
const filter = document.getElementById("filter");
filter.value = "collapsed"; filter.dispatchEvent(new Event("input"));
const kept = rows().filter((row) => !row.hidden).length;
const curves = document.querySelectorAll("#chart .curve").length;
const box = document.getElementById("chart").getBoundingClientRect();
const middle = { clientX: box.left + box.width / 2, clientY: 0 };
document.getElementById("chart").dispatchEvent(new MouseEvent("mousemove", middle));
const readout = document.getElementById("readout").textContent;
click(document.querySelector("#legend input"));
const fewer = document.querySelectorAll("#chart .curve").length;
const answer = document.createElement("pre");
answer.id = "probe";
answer.textContent = JSON.stringify({ rising, falling, details, kept, curves, fewer, readout });
document.body.append(answer);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_page_sorts_filters_and_reads_out_in_a_browser(page, tmp_path):
    path = tmp_path / "probe.html"
    path.write_text(page.replace("</body>", f"{PROBE}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, path.as_uri()], capture_output=True, text=True, timeout=180)
    answer = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert answer, done.stderr[-2000:]
    seen = json.loads(answer.group(1).replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert seen["rising"] == sorted(seen["rising"]) and seen["falling"] == seen["rising"][::-1]
    assert seen["details"].startswith("normstab run")
    assert seen["kept"] == 3
    assert (seen["curves"], seen["fewer"]) == (6, 5)
    # The first panel is that of l1 at scale 1: two precisions, three seeds each.
    assert re.match(r"step 95\nfp16: STABLE, seed 0: 0\.5\d+\n", seen["readout"]) and seen["readout"].count("\n") == 6


def test_the_page_is_written_beside_the_records(page, tmp_path):
    assert write_html(made_assessment(tmp_path), tmp_path).read_text() == page


def test_what_is_not_decided_is_not_said_to_have_failed(tmp_path):
    found = made_assessment(tmp_path)

    def undecided_if_linf(group):
        if group.is_reference or group.coordinates["norm"] != "linf":
            return group
        cells = tuple(replace(cell, verdict=Verdict.INCONCLUSIVE) for cell in group.cells)
        return replace(group, verdict=Verdict.INCONCLUSIVE, cells=cells)

    groups = tuple(map(undecided_if_linf, found.groups))
    failed, _, undecided = render_html(replace(found, groups=groups)).partition("<h2>Not decided</h2>")
    assert "COLLAPSED</span>" in failed and "COLLAPSED</span>" not in undecided
    assert "INCONCLUSIVE</span>" not in failed and undecided.count("INCONCLUSIVE</span>") == 4  # precisions x scales
