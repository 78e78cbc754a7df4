"""The project's own files: what is cited, built and released is the package as it is."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import normstab

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version_and_has_the_paper():
    cited = read(ROOT / "CITATION.cff")
    assert str(cited["version"]) == normstab.__version__
    (paper,) = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Hoffer", "Banner", "Golan", "Soudry"]
    assert paper["title"].startswith("Norm matters") and paper["year"] == 2018


def test_the_site_has_every_page_of_the_documentation():
    site = read(ROOT / ".github" / "mkdocs.yml")
    listed = [page for entry in site["nav"] for page in entry.values()]
    folder = (ROOT / ".github" / site["docs_dir"]).resolve()
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.md"))


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "normstab" / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+\.md)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_bounded_jobs_and_may_only_read_by_itself(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 180 for job in workflow["jobs"].values())


def test_the_suite_runs_on_every_python_that_the_package_names():
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == named
    assert named[0] == "3.11" and f'requires-python = ">={named[0]}"' in (ROOT / "pyproject.toml").read_text()
