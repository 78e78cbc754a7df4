"""Scenarios and judged stories for the report's tests."""

import json
from dataclasses import replace
from pathlib import Path

from normstab.assess.assessment import assess
from normstab.experiment.records.cell_record import write_record
from normstab.experiment.records.step_log import StepLog, log_sha256
from normstab.experiment.scenario.reader import load_scenario
from normstab.study import keep_scenario
from tests.assess.synthetic import story

SCENARIO = """\
version: 1
name: made
question: Does L1 batch norm train in half precision where L2 fails?
source: Hoffer et al. 2018, figure 3
page: made_page
claims:
  - {id: P1, text: L2 fails where L1 trains., paper: "33.7 % | 33.3 %", plot: {kind: bars, x: norm, by: precision}}
  - {id: P2, text: The loss falls., plot: {kind: curves, metric: error, by: norm, where: {precision: fp16}}}
dataset: {name: fashion-mnist-sample, size: 16}
model: {name: resnet18, width: 16}
numerics: {histogram: true}
grid:
  norm: [l2, l1, linf]
  precision: [fp16/nearest/fp32, fp16;square=fp32]
  input_scale: [1, 256]
  seed: [0, 1, 2]
expect:
  - {where: {norm: l2, precision: fp16, input_scale: 256}, verdict: [COLLAPSED, NONFINITE], smoke: true, claim: P1}
  - metric: accuracy
    better: {norm: l1}
    worse: {norm: l2}
    where: {precision: fp16, input_scale: 256}
    by: 20pp
    claim: P1
  - {metric: accuracy, within: 1pp, where: {norm: linf, precision: fp16, input_scale: 1}, of: {norm: l2}}
  - {metric: accuracy, within: 1pp, where: {norm: l1, precision: fp16, input_scale: 1}, of: {norm: l2}}
profiles: {smoke: {train.epochs: 1, grid.seed: [0]}}
"""


def made_scenario(folder, text=SCENARIO, **keywords):
    path = Path(folder) / "made.yaml"
    path.write_text(text, encoding="utf-8")
    loaded = load_scenario(path, **keywords)
    object.__setattr__(loaded, "path", "scenarios/made.yaml")
    return loaded


def made_assessment(folder, *, runs=None, **keywords):
    return assess(story(scales=(1, 256)) if runs is None else runs, made_scenario(folder), **keywords)


def write_runs(directory, runs, scenario):
    """Leave a run's directory as `normstab run` would."""
    keep_scenario(scenario, directory)
    for run in runs:
        place = directory / "records" / run.id
        with StepLog(place) as log:
            for step in run.steps:
                log.append(step)
        write_record(place, replace(run.record, steps_sha256=log_sha256(place)))
    return directory


def json_of(text):
    return json.loads(text)
