"""Writing a scenario file: a first one that is valid, a schema with every name, a page with every field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from normstab.__main__ import main
from normstab.experiment.data.datasets import DATASETS, EVERY_SET
from normstab.experiment.data.token_sets import TOKEN_SETS
from normstab.experiment.network.language_models import LANGUAGE_MODELS
from normstab.experiment.network.models import EVERY_MODEL, MODELS
from normstab.experiment.scenario.authoring.field_tables import field_tables
from normstab.experiment.scenario.authoring.schema import schema
from normstab.experiment.scenario.authoring.starter import Starter
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.metric_names import METRIC_NAMES, SWEEP_METRICS
from normstab.experiment.scenario.reader import load_scenario, scenario_of_text, scenario_paths
from normstab.norms.catalogue import NORMS
from normstab.numerics.recipes import RECIPES

PAGE = (Path(__file__).parents[2] / "normstab" / "docs" / "scenarios.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "starter",
    [
        *(Starter("mine", model=model) for model in MODELS),
        *(Starter("mine", dataset=dataset) for dataset in DATASETS),
        Starter("mine", model="timm:vit_tiny_patch16_224", precisions=("fp16;square=fp32", "e4m3fn:saturate", "half")),
        Starter("1e5", norms=("linf",), precisions=("bf16/stochastic",)),
    ],
    ids=lambda starter: f"{starter.model}-{starter.dataset}-{starter.name}",
)
def test_a_first_file_is_valid_for_everything_that_the_catalogues_have(starter: Starter) -> None:
    scenario = scenario_of_text(starter.text(), "mine.yaml")
    cells = [cell for cell in expand(scenario, hash_data=False) if cell.is_listed]
    assert scenario.name == starter.name
    assert {cell.model.name for cell in cells} == {starter.model}
    assert {cell.dataset.name for cell in cells} == {starter.dataset}
    assert len(cells) == 3 * len(starter.norms) * len(starter.precisions), "three seeds of each"


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_a_first_file_for_a_network_of_tokens_has_tokens(model: str) -> None:
    cell = expand(scenario_of_text(Starter("mine", model=model).text(), "mine.yaml"), hash_data=False)[0]
    assert TOKEN_SETS[cell.dataset.name].kind == LANGUAGE_MODELS[model].takes and cell.train.optimizer.name == "adam"


def test_a_new_scenario_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "mine", "--model", "mlp", "--norm", "l2", "--precision", "fp16"]) == 0
    assert "next: normstab run mine.yaml --smoke" in capsys.readouterr().err
    assert main(["run", "mine.yaml", "--smoke", "--quiet"]) == 0
    assert (tmp_path / "reports" / "mine-smoke" / "report.md").exists()


def test_a_new_scenario_replaces_no_file_and_writes_none_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("my work")
    assert main(["new", "mine"]) == 2
    assert (tmp_path / "mine.yaml").read_text() == "my work" and "--force" in capsys.readouterr().err
    assert main(["new", "other", "--model", "resnt18", "--precision", "float16"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'resnet18'" in said and "did you mean fp16" in said and "nothing was written" in said
    assert not (tmp_path / "other.yaml").exists()
    assert main(["new", "mine", "--force"]) == 0
    assert max(map(len, (tmp_path / "mine.yaml").read_text().splitlines())) <= 120
    assert load_scenario("mine.yaml").name == "mine"


def enumerated(plain: Any) -> set[Any]:
    """Return every value of an enumeration in a part of the schema."""
    if isinstance(plain, dict):
        return set(plain.get("enum", ())).union(*map(enumerated, plain.values()))
    return set().union(*map(enumerated, plain)) if isinstance(plain, list) else set()


def test_the_schema_offers_every_name_of_the_catalogues() -> None:
    definitions = schema()["$defs"]
    assert enumerated(definitions["ModelSpec"]["properties"]["name"]) == set(EVERY_MODEL)
    assert enumerated(definitions["DatasetSpec"]["properties"]["name"]) == set(EVERY_SET)
    assert enumerated(definitions["Norm"]) == {*NORMS, "mean-only", "none"}
    assert enumerated(definitions["Precision"]) >= {*RECIPES, "native", "fp16"}
    assert enumerated(definitions["Metric"]) == {*METRIC_NAMES, *SWEEP_METRICS}
    assert definitions["Grid"]["properties"]["norm"]["items"]["anyOf"][0] == {"$ref": "#/$defs/Norm"}
    assert {"norm", "seed", "variant", "train.optimizer.lr"} <= definitions["Grid"]["properties"].keys()


def test_every_shipped_scenario_holds_against_the_schema_and_wrong_names_do_not() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    for name in scenario_paths():
        document = json.loads(json.dumps(load_scenario(name).document))
        assert [error.message for error in validator.iter_errors(document)] == []
        for field, wrong in (("dataset", "cifar11"), ("model", "resnt18")):
            assert not validator.is_valid({**document, field: {"name": wrong}})
        assert not validator.is_valid({**document, "grid": {"nrm": ["l1"]}})
        assert not validator.is_valid({**document, "grid": {"norm": ["l0"]}})


def test_the_page_on_scenarios_has_every_field_as_the_schema_has_it() -> None:
    written = PAGE.partition("<!-- fields: `normstab schema --fields` -->\n")[2]
    assert written.strip() == field_tables().strip(), "paste the output of `normstab schema --fields` below the comment"
    for path in ("| `epochs` |", "| `args` |", "| `within` |", "| `milestones` |"):
        assert path in written


def test_every_field_is_described() -> None:
    empty = [line for line in field_tables().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert empty == []


@pytest.mark.parametrize("block", FENCED.findall(PAGE))
def test_the_examples_of_the_page_are_valid(block: str) -> None:
    base = {
        "version": "version: 1\n",
        "name": "name: example\n",
        "dataset": "dataset: {name: synthetic}\n",
        "model": "model: {name: mlp}\n",
        "grid": 'grid: {norm: [l2, l1], precision: [fp16, fp32, "fp16;square=fp32"], seed: [0, 1]}\n',
    }
    kept = [line for field, line in base.items() if not re.search(rf"^{field}:", block, re.MULTILINE)]
    assert expand(scenario_of_text("".join([*kept, block]), "example.yaml"), hash_data=False)
