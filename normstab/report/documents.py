"""Judgements for programs: JSON, and JUnit XML with one test case per cell and per expectation.

Plain text in, plain text out; the command line prints it.
"""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

from normstab.assess.assessment import Assessment
from normstab.assess.causes.blame import Blame
from normstab.assess.expected.outcome import Outcome
from normstab.assess.judgement import GroupJudgement, Judgement
from normstab.assess.points import point_words
from normstab.experiment.records.files import jsonable
from normstab.report.words import command_for

__all__ = ["to_json", "to_junit"]


def to_json(*found: Assessment) -> str:
    """Return everything judged as JSON: an object for one scenario, a list for several.

    Numbers that are not finite are the strings "inf", "-inf" and "nan".
    """
    documents = [_document(assessment) for assessment in found]
    chosen = documents[0] if len(documents) == 1 else documents
    return json.dumps(jsonable(chosen), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _document(found: Assessment) -> dict[str, Any]:
    """Return one scenario's judgement as plain data."""
    return {
        "version": 1,
        "scenario": found.scenario.name,
        "question": found.scenario.question,
        "source": found.scenario.source,
        "tolerance": found.scenario.tolerance,
        "verdicts": {str(verdict): count for verdict, count in found.tally().items()},
        "groups": [_group(group) for group in found.groups],
        "cells": [_cell(found, cell) for cell in found.cells],
        "expectations": [
            {
                "statement": result.statement,
                "outcome": str(result.outcome),
                "reason": result.finding.reason,
                "found": result.finding.found,
                "claim": result.claim,
                "smoke": result.expectation.smoke,
            }
            for result in found.expectations
        ],
        "missing": [cell.id for cell in found.missing],
        "problems": list(found.problems),
        "warnings": list(found.warnings),
    }


def _group(group: GroupJudgement) -> dict[str, Any]:
    """Return a grid point over its seeds."""
    gap = None if group.gap is None else group.gap.interval(0.95)
    return {
        "coordinates": dict(group.coordinates),
        "is_reference": group.is_reference,
        "verdict": str(group.verdict),
        "reason": group.worst.reason,
        "accuracy": group.accuracy,
        "gap": None
        if gap is None
        else {
            "estimate": gap.estimate,
            "low": gap.low,
            "high": gap.high,
            "confidence": 0.95,
            "quantity": group.gap.quantity if group.gap is not None else "accuracy",
        },
        "cells": [cell.id for cell in group.cells],
        "remedies": [
            {
                "name": remedy.name,
                "advice": remedy.advice,
                "evidence": remedy.evidence,
                "change": dict(remedy.change),
                "tested": remedy.tested,
                "tried": remedy.tried,
            }
            for remedy in group.remedies
        ],
    }


def _cell(found: Assessment, cell: Judgement) -> dict[str, Any]:
    """Return one cell with its metrics and its command."""
    return {
        "id": cell.id,
        "coordinates": dict(cell.coordinates),
        "is_reference": cell.run.is_reference,
        "verdict": str(cell.verdict),
        "reason": cell.reason,
        "first_site": cell.first_site,
        "first_step": cell.first_step,
        "blame": None if cell.blame is None else _blame(cell.blame),
        "metrics": dict(cell.metrics),
        "command": command_for(found.scenario, cell.coordinates),
    }


def _blame(blame: Blame) -> dict[str, Any]:
    """Return who produced the first offence, and where it went on."""
    return {"counter": blame.counter, "count": blame.count, "of": blame.of, "passed_on": blame.passed_on}


def to_junit(*found: Assessment) -> str:
    """Return JUnit XML: a suite per scenario, in it a case per cell and one per expectation.

    A cell that failed as a scientific result is no failed test: its verdict is a property. What fails is an
    expectation that is not met; an open one is skipped with its reason; a cell without a record is an error.
    """
    root = ElementTree.Element("testsuites")
    root.extend(_suite(assessment) for assessment in found)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _suite(found: Assessment) -> ElementTree.Element:
    """Return one scenario's suite."""
    suite = ElementTree.Element("testsuite", name=found.scenario.name)
    for cell in found.cells:
        case = _case(suite, f"{found.scenario.name}.cells", point_words(cell.coordinates))
        properties = ElementTree.SubElement(case, "properties")
        facts = {
            "id": cell.id,
            "verdict": str(cell.verdict),
            "first_site": cell.first_site,
            "first_step": cell.first_step,
        }
        for name, value in facts.items():
            if value is not None:
                ElementTree.SubElement(properties, "property", name=name, value=_clean(str(value)))
        ElementTree.SubElement(case, "system-out").text = _clean(f"{cell.verdict}: {cell.sentence}")
    for lost in found.missing:
        case = _case(suite, f"{found.scenario.name}.cells", point_words(lost.coordinates))
        ElementTree.SubElement(case, "error", message=f"no record of {lost.id}; run the scenario again")
    for number, result in enumerate(found.expectations, 1):
        case = _case(suite, f"{found.scenario.name}.expectations", f"{number}: {result.statement}")
        if result.outcome is Outcome.NOT_MET:
            ElementTree.SubElement(case, "failure", message=_clean(result.finding.reason), type="not met")
        elif result.outcome is not Outcome.MET:
            ElementTree.SubElement(case, "skipped", message=_clean(f"{result.outcome}: {result.finding.reason}"))
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for tag, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    return suite


def _case(suite: ElementTree.Element, classname: str, name: str) -> ElementTree.Element:
    """Return a new test case of the suite."""
    return ElementTree.SubElement(suite, "testcase", classname=classname, name=_clean(name))


def _clean(text: str) -> str:
    """Return the text without the control characters that XML 1.0 does not allow."""
    return "".join(letter for letter in text if letter >= " " or letter in "\t\n")
