"""Synthetic records by the thousand: every cell of a grid, each with a ledger, predictions and a log of its own."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from normstab.experiment.records.cell_record import record_document
from normstab.experiment.records.files import json_text, jsonable
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import scenario_of_text
from normstab.study import keep_scenario
from tests.assess.synthetic import STEPS, falling, make_run, predictions, story_sites

SCENARIO = """\
version: 1
name: many
question: Which of very many settings train?
dataset: {name: fashion-mnist-sample, size: 16}
model: {name: resnet18, width: 16}
numerics: {histogram: true}
grid:
  norm: [l2, l1]
  precision: [native, fp16/nearest/fp32]
  train.optimizer.lr: LRS
  seed: [0, 1, 2, 3, 4]
expect:
  - {where: {norm: l2, precision: fp16}, verdict: [COLLAPSED, STABLE]}
"""


def write_many(directory, cells, *, steps=STEPS, images=2000):
    """Leave the run of a grid of so many cells, a multiple of 20, in `directory`; half of them are references."""
    rates = [round(0.001 + 0.0001 * index, 6) for index in range(cells // 20)]
    scenario = scenario_of_text(SCENARIO.replace("LRS", json.dumps(rates)), "scenarios/many.yaml")
    keep_scenario(scenario, directory)
    logs = [log_of(seed, steps) for seed in range(5)]
    made = {}
    for cell in expand(scenario):
        is_wide, norm, seed = cell.numerics.precision == "native", str(cell.model.norm), cell.train.seed
        fails = not is_wide and norm == "l2" and rates.index(cell.train.optimizer.lr) % 2
        kind = (is_wide, norm, seed, fails)
        if kind not in made:
            made[kind] = make_run(
                cell,
                losses=falling(seed=seed, steps=steps),
                predicted=predictions(0.1 if fails else 0.85, seed=seed, changed=0.02, images=images),
                sites=story_sites(256.0 if fails else 1.0, norm=norm, rounded=not is_wide),
                first={"overflow": ("stem.square[forward]", 0)} if fails else {},
            ).record
        text, sha256 = logs[seed]
        record = replace(made[kind], id=cell.id, cell=cell.to_json(), steps_sha256=sha256)
        place = Path(directory) / "records" / cell.id
        place.mkdir(parents=True)
        (place / "steps.jsonl").write_text(text)
        (place / "record.json").write_text(json_text(record_document(record)))


def log_of(seed, steps):
    """The log of a seed's steps, and its hash."""
    losses = falling(seed=seed, steps=steps)
    lines = [
        json.dumps(jsonable({"step": step, "loss": float(loss), "gradient_norm": 1.0, "lr": 0.1}))
        for step, loss in enumerate(np.asarray(losses))
    ]
    text = "".join(f"{line}\n" for line in lines)
    return text, hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    write_many(Path(sys.argv[1]), int(sys.argv[2]), steps=40, images=200)
