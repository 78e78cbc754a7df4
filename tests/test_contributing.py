"""CONTRIBUTING.md tells the truth: its diffs apply to the package as it is, and give what it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
CLAIMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
VARIANTS = (
    "A number format", "A norm", "A model", "A data set", "A metric", "A verdict", "A remedy", "An operation of torch",
    "A recipe", "A rounding mode",
)  # fmt: skip


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the package with every diff applied."""
    if shutil.which("git") is None:
        pytest.skip("needs git apply")
    place = tmp_path_factory.mktemp("changed")
    shutil.copytree(ROOT / "normstab", place / "normstab", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        apply = ["git", "apply", "-C1", "-"]
        done = subprocess.run(apply, cwd=place, input=diff, text=True, capture_output=True)
        assert done.returncode == 0, f"{diff}\n{done.stderr}"
    return place


def test_every_variant_has_its_section():
    assert re.findall(r"^### (.*)", TEXT, re.MULTILINE) == list(VARIANTS)
    assert len(DIFFS) == len(CLAIMS) == len(VARIANTS) - 1


def test_the_diffs_apply_together_and_give_what_is_said(changed):
    imported = f"import normstab; assert normstab.__file__.startswith({str(changed)!r}), normstab.__file__\n"
    script = imported + "".join(CLAIMS)
    done = subprocess.run([sys.executable, "-c", script], cwd=changed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_the_diffs_nothing_of_it_holds():
    for claim in CLAIMS:
        done = subprocess.run([sys.executable, "-c", claim], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode != 0, f"true already, so that its diff shows nothing:\n{claim}"
