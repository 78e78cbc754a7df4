"""`normstab check` on a user's own factory: the answer on stdout, the verdict as the exit code."""

import json
from xml.etree import ElementTree

import pytest

from normstab.__main__ import main

FACTORY = """\
import torch

def overflows():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), Square())

def survives():
    return torch.nn.Linear(4, 4)

class Square(torch.nn.Module):
    def forward(self, x):
        return (1000 * x) * (1000 * x)
"""


@pytest.mark.parametrize(("name", "code"), [("survives", 0), ("overflows", 1)])
def test_check_answers_for_a_users_factory(tmp_path, monkeypatch, capsys, name, code):
    (tmp_path / "factories.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["check", f"factories:{name}", "--input", "2x4", "--precision", "fp16", "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"] == (code == 0)


def test_check_asks_about_names_that_may_mean_another_format(tmp_path, monkeypatch, capsys):
    (tmp_path / "factories.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ["check", "factories:survives", "--input", "2x4", "--precision"]
    main([*asked, "e4m3"])
    assert "note: e4m3 has max 240 and inf; did you mean e4m3fn, max 448?" in capsys.readouterr().out
    assert main([*asked, "float16"]) == 2
    assert "did you mean fp16 (every result rounded to fp16) or half" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "failures"), [("survives", "0"), ("overflows", "1")])
def test_check_answers_as_junit_too(tmp_path, monkeypatch, capsys, name, failures):
    (tmp_path / "factories.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = main(["check", f"factories:{name}", "--input", "2x4", "--format", "junit"])
    suite = ElementTree.fromstring(capsys.readouterr().out)
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "1", failures)
    assert suite.find("testcase").get("name").startswith(f"factories:{name} in fp16")
    assert (suite.find("testcase/failure") is not None) == (code == 1)


def test_check_of_an_unknown_factory_is_bad_input(capsys):
    assert main(["check", "json:lods", "--input", "2x4"]) == 2
    assert "did you mean 'load" in capsys.readouterr().err
