"""A page as a browser lays it out: headless Chromium measures every text; nothing is fetched, nothing is installed."""

import html
import json
import re
import shutil
import subprocess

# Debian's names first.
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000")

MEASURE = """
<script>
const found = [];
for (const svg of document.querySelectorAll('svg')) {
  const page = svg.getBoundingClientRect();
  const box = r => [r.left - page.left, r.top - page.top, r.right - page.left, r.bottom - page.top];
  const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim()).map(t => ({
    text: t.textContent, box: box(t.getBoundingClientRect()),
    px: parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b),
    legend: !!t.closest('[id^=legend]')}));
  const panels = [...svg.querySelectorAll('g[id^=axes_]')].map(g => {
    const patch = g.querySelector(':scope > g[id^=patch_]');
    return patch ? box(patch.getBoundingClientRect()) : null; }).filter(Boolean);
  found.push({name: svg.dataset.name, size: [page.width, page.height], texts, panels});
}
document.body.innerHTML = '';
const out = document.createElement('pre'); out.id = 'measured'; out.textContent = JSON.stringify(found);
document.body.appendChild(out);
</script>
"""


def measured(pictures, folder):
    """Return, for each SVG by name, its size and its texts with their boxes, in pixels, as the browser draws them."""
    bodies = [
        re.sub(r"^.*?<svg ", f'<svg data-name="{html.escape(name)}" ', svg, count=1, flags=re.DOTALL)
        for name, svg in pictures.items()
    ]
    page = folder / "pictures.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(bodies)}{MEASURE}", encoding="utf-8")
    done = subprocess.run(
        [BROWSER, *FLAGS, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    text = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    return {found["name"]: found for found in json.loads(html.unescape(text))}


def laid_out(page, scheme):
    """Return the width that a page needs in a window of 1200 pixels, and the colours of its background and texts."""
    text = page.read_text(encoding="utf-8")
    script = """<script>
      const style = getComputedStyle(document.body);
      const rgb = text => (text.match(/[0-9.]+/g) || []).map(Number).slice(0, 3);
      const told = JSON.stringify([document.documentElement.scrollWidth, rgb(style.backgroundColor), rgb(style.color)]);
      document.body.innerHTML = '<pre id="measured">' + told + '</pre>';
    </script>"""
    measuring = page.with_name("measuring.html")
    measuring.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    flags = [
        *FLAGS,
        "--window-size=1200,900",
        *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
    ]
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", measuring.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)[1])


def overlapping(texts, slack=1.0):
    """Return the pairs of texts whose boxes share more than `slack` pixels in both directions."""
    pairs = []
    for i, first in enumerate(texts):
        for second in texts[i + 1 :]:
            a, b = first["box"], second["box"]
            if min(a[2], b[2]) - max(a[0], b[0]) > slack and min(a[3], b[3]) - max(a[1], b[1]) > slack:
                pairs.append((first["text"], second["text"]))
    return pairs


def clipped(found, slack=0.5):
    """Return the texts that reach beyond their picture."""
    width, height = found["size"]
    return [
        text["text"]
        for text in found["texts"]
        if min(text["box"][:2]) < -slack or text["box"][2] > width + slack or text["box"][3] > height + slack
    ]


def legends_over_panels(found, slack=1.0):
    """Return the texts of legends that lie over a panel, where the curves are."""
    return [
        text["text"]
        for text in found["texts"]
        for panel in found["panels"]
        if text["legend"]
        and min(text["box"][2], panel[2]) - max(text["box"][0], panel[0]) > slack
        and min(text["box"][3], panel[3]) - max(text["box"][1], panel[1]) > slack
    ]
