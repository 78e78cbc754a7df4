"""Transformers: padding and what comes later change nothing, every norm and machine trains, a resume goes on."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normstab as ns
from normstab.errors import ScenarioError
from normstab.experiment.data.datasets import load_dataset
from normstab.experiment.data.token_sources import IGNORED, PAD
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.network.language_models import LANGUAGE_MODELS
from normstab.experiment.network.models import build_model
from normstab.experiment.network.weighted_layers import hidden_layers, last_layer, norm_layers
from normstab.experiment.records.cell_record import Record
from normstab.experiment.records.checkpoints import Checkpoints
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import scenario_of_text
from normstab.experiment.scenario.spec import Cell, DatasetSpec, ModelSpec
from normstab.experiment.training.batch_loss import batch_loss, judged, outputs
from normstab.experiment.training.train_cell import run_cell
from tests.experiment.cells import small_cell

NORMS = {"l2": {}, "l1": {"norm": "l1"}, "linf": {"norm": "linf"}, "rms l1": {"norm": "l1", "norm_layer": "rms"}}
SCALED = {**NORMS, "bwn": {"norm": "none", "weight_norm": "bwn"}, "wn": {"norm": "none", "weight_norm": "wn"}}
SETS = {"transformer": "cmudict-sample", "causal-lm": "kjv-sample"}


def tokens(name: str = "cmudict-sample", *, train: int = 8) -> TokenDataset:
    data = load_dataset(DatasetSpec(name, train=train, test=8, size=16 if name == "kjv-sample" else None))
    assert isinstance(data, TokenDataset)
    return data


def built(data: TokenDataset, name: str = "transformer", **chosen: Any) -> nn.Module:
    return build_model(ModelSpec(name, width=8, layers=1, heads=2, **chosen), data.task, seed=0)


def token_cell(precision: str = "native", *, name: str = "transformer", model: dict[str, Any] | None = None) -> Cell:
    spec = ModelSpec(name, width=8, layers=1, heads=2, **(model or {}))
    data = DatasetSpec(SETS[name], train=16, test=12, size=16 if name == "causal-lm" else None)
    cell = small_cell(precision, cell__dataset=data, cell__model=spec, train__epochs=2, train__batch=8)
    return small_cell(
        precision,
        cell__dataset=data,
        cell__model=spec,
        cell__train=cell.train,
        optimizer__name="adam",
        optimizer__lr=0.01,
    )


def losses(model: nn.Module, data: TokenDataset, index: torch.Tensor) -> list[torch.Tensor]:
    """Return the loss of each token of each sequence, all sequences in one batch."""
    x, y = data.train_batch(index)
    with torch.no_grad():
        logits = outputs(model, x)
    return [F.cross_entropy(a[b != IGNORED], b[b != IGNORED], reduction="none") for a, b in zip(logits, y, strict=True)]


@pytest.mark.parametrize("kind", SCALED)
def test_in_fp16_a_padded_batch_gives_each_token_the_bits_that_it_has_alone(kind: str) -> None:
    data = tokens()
    model = built(data, **SCALED[kind])
    with ns.simulate(model, "fp16"):
        together = losses(model, data, torch.arange(8))
        alone = [losses(model, data, torch.tensor([i]))[0] for i in range(8)]
    assert len({len(loss) for loss in alone}) > 2, "the words differ in length"
    # Each product of a row is wide and rounded once; only a wide result on a rounding border could differ.
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("kind", SCALED)
def test_in_float32_padding_changes_a_loss_by_no_more_than_the_order_of_sums(kind: str) -> None:
    data = tokens()
    model = built(data, **SCALED[kind])
    together = losses(model, data, torch.arange(8))
    alone = [losses(model, data, torch.tensor([i]))[0] for i in range(8)]
    # Zeros are added to sums of at most 32 terms: n u relative per operation, some twenty operations deep.
    bound = 20 * 32 * 2.0**-24
    assert all(bool(((a - b).abs() <= bound * (1 + b)).all()) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_no_token_sees_a_later_one(name: str) -> None:
    data = tokens(SETS[name])
    model = built(data, name)
    inputs, _ = data.train_batch(torch.arange(4))
    changed = inputs[-1].clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % data.classes
    with torch.no_grad():
        before, after = model(*inputs), model(*inputs[:-1], changed)
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3:], after[:, 3:])


def test_padding_of_the_source_is_seen_by_nobody() -> None:
    data = tokens()
    model = built(data)
    (source, before), _ = data.train_batch(torch.arange(8))
    wider = torch.cat([source, torch.full_like(source[:, :1], PAD)], dim=1)[:, : data.task.source_length]
    embedding = model.source.token
    with torch.no_grad():
        plain = model(wider, before)
        embedding.weight[PAD] = 1e4  # type: ignore[union-attr, operator, index]
        assert torch.equal(model(wider, before), plain)


def test_a_batchs_loss_is_the_mean_over_its_tokens() -> None:
    logits, y = torch.randn(2, 3, 5), torch.tensor([[1, 2, IGNORED], [4, IGNORED, IGNORED]])
    by_hand = -sum(logits[i, t].log_softmax(0)[y[i, t]] for i, t in ((0, 0), (0, 1), (1, 0))) / 3
    assert batch_loss(logits, y, 0.0).item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert judged(logits, y)[1].tolist() == [1, 2, 4]
    images, labels = torch.randn(3, 5), torch.tensor([0, 1, 2])
    assert torch.equal(batch_loss(images, labels, 0.1), F.cross_entropy(images, labels, label_smoothing=0.1))
    assert judged(images, labels)[0] is images


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("kind", SCALED)
def test_each_norm_is_where_a_norm_stands_and_every_parameter_learns(name: str, kind: str) -> None:
    data = tokens(SETS[name])
    model = built(data, name, **SCALED[kind])
    layers = norm_layers(model)
    assert {layer.norm for layer in layers.values()} == ({SCALED[kind].get("norm", "l2")} if kind in NORMS else set())
    assert {"RMSNorm" in type(layer).__name__ for layer in layers.values()} == ({kind == "rms l1"} if layers else set())
    wrapped = [layer for layer in hidden_layers(model).values() if hasattr(layer, "parametrizations")]
    assert len(wrapped) == (0 if kind in NORMS else len(hidden_layers(model)))
    assert last_layer(model) is model.head and not hasattr(model.head, "parametrizations")
    x, y = data.train_batch(torch.arange(8))
    batch_loss(outputs(model, x), y, 0.0).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_equal_seeds_give_equal_embeddings_under_every_norm() -> None:
    data = tokens()
    first, other = built(data), built(data, norm="none", weight_norm="bwn")
    assert torch.equal(first.source.token.weight, other.source.token.weight)  # type: ignore[union-attr, arg-type]


MACHINES = ("native", "half", "uniform:fp16", "amp-fp16", "fp16/stochastic")


@pytest.mark.parametrize("precision", MACHINES)
def test_a_cell_of_words_has_token_and_word_scores_on_every_machine(tmp_path: Path, precision: str) -> None:
    record = run_cell(token_cell(precision, model={"norm": "l1"}), tmp_path / "cell")
    assert record.status == "finished" and not record.unrecognised
    assert_of_tokens(record)
    assert (
        record.language is not None and record.language.word_accuracy is not None and record.language.chrf is not None
    )
    assert read_record(tmp_path / "cell") == record
    last = record.epochs[-1]
    assert last.train_loss < record.epochs[0].train_loss < 2 * math.log(record.data.classes)


def test_a_cell_of_text_has_token_scores_alone(tmp_path: Path) -> None:
    record = run_cell(
        token_cell("fp16", name="causal-lm", model={"norm": "none", "weight_norm": "bwn"}), tmp_path / "cell"
    )
    assert_of_tokens(record)
    assert record.language is not None and record.language.word_accuracy is None and record.language.chrf is None
    assert record.predictions.label_array.size == 12 * 16


def assert_of_tokens(record: Record) -> None:
    labels = record.predictions.label_array
    assert record.epochs[-1].accuracy == float(record.predictions.correct.mean())
    assert record.language is not None
    assert record.language.chance == max(labels.tolist().count(token) for token in set(labels.tolist())) / labels.size


def test_a_record_of_images_says_nothing_of_language(tmp_path: Path) -> None:
    run_cell(small_cell(train__epochs=1), tmp_path / "cell")
    assert "language" not in (tmp_path / "cell" / "record.json").read_text()


@pytest.mark.parametrize("kind", ["l1", "bwn"])
def test_a_cell_of_words_resumed_at_any_checkpoint_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cell, whole, copies = token_cell("fp16/stochastic", model=SCALED[kind]), tmp_path / "whole", []
    write = Checkpoints.write

    def keep(checkpoints: Checkpoints, state: dict[str, Any]) -> None:
        write(checkpoints, state)
        copies.append(tmp_path / f"{len(copies)}")
        shutil.copytree(whole, copies[-1])

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", keep)
        run_cell(cell, whole, checkpoint_s=0.0)
    assert len(copies) == 4
    for copy in (copies[0], copies[-1]):
        run_cell(cell, copy)
        for name in ("record.json", "steps.jsonl"):
            assert (copy / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("dataset", "model", "message"),
    [
        ("cmudict-sample", "resnet18", "model 'resnet18' takes images, data set 'cmudict-sample' has pairs"),
        ("kjv-sample", "transformer", "takes pairs, data set 'kjv-sample' has text"),
        ("synthetic", "causal-lm", "takes text, data set 'synthetic' has images"),
        ("cmudict-sample", "transformer, heads: 3", "model.heads 3 does not divide model.width 64"),
        ("cmudict-sample", "transformer, stem: imagenet", "model 'transformer' has no model.stem"),
        ("synthetic", "mlp, layers: 2", "layers, heads and norm_layer are those of transformer, causal-lm"),
        ("cmudict-sample, size: 8", "transformer", "dataset.size means nothing for words; leave it out"),
    ],
)
def test_what_does_not_go_together_is_told(dataset: str, model: str, message: str) -> None:
    text = f"version: 1\nname: made\ndataset: {{name: {dataset}}}\nmodel: {{name: {model}}}\n"
    with pytest.raises(ScenarioError, match=message):
        expand(scenario_of_text(text, "made.yaml"), hash_data=False)


def test_an_outlier_channel_is_the_same_at_every_position() -> None:
    data = tokens("kjv-sample")
    model, plain = (built(data, "causal-lm", init=init) for init in ("outlier-channel", "torch"))
    name = "source.position.weight"
    assert torch.equal(model.get_parameter(name)[:, 0], torch.full((16,), 300.0))
    assert torch.equal(model.get_parameter(name)[:, 1:], plain.get_parameter(name)[:, 1:])
    assert all(torch.equal(w, plain.get_parameter(n)) for n, w in model.named_parameters() if n != name)
    square = torch.tensor(300.0).half().square()
    assert square.isinf(), "or the channel would be no trouble to a norm in fp16"
