"""Synthetic runs: records and steps made from a few numbers, shaped as a training run's are."""

from dataclasses import replace

import numpy as np

from normstab.assess.runs import Run
from normstab.experiment.records.cell_record import (
    DataFacts,
    Environment,
    EpochRecord,
    Nonfinite,
    NormLayerRecord,
    Offence,
    Predictions,
    Probe,
    Record,
)
from normstab.experiment.records.step_log import Step
from normstab.experiment.scenario.spec import Cell, DatasetSpec, ModelSpec, NumericsSpec, TrainSpec
from normstab.numerics.ledger import Histogram, Tally
from normstab.numerics.precision import Precision

CLASSES, STEPS, EPOCHS = 10, 200, 2
FP16 = str(Precision.parse("fp16"))


def make_cell(norm="l2", precision="native", seed=0, scale=1.0, scenario="made", reference=None, **coordinates):
    point = {"norm": norm, "precision": precision, "input_scale": scale, **coordinates, "seed": seed}
    return Cell(
        scenario=scenario,
        coordinates=point,
        dataset=DatasetSpec("fashion-mnist-sample", scale=scale),
        model=ModelSpec("resnet18", norm=norm),
        train=TrainSpec(epochs=EPOCHS, seed=seed),
        numerics=NumericsSpec(precision=precision),
        is_reference=precision == "native",
        reference_id=None
        if precision == "native"
        else make_cell(norm, seed=seed, scale=scale, scenario=scenario, **coordinates).id,
    )


def predictions(accuracy, *, images=2000, seed=0, changed=0.0, difficulty_seed=1):
    """Predictions of about `accuracy`: hard images are wrong first; a share `changed` is drawn anew per seed."""
    labels = np.arange(images) % CLASSES
    difficulty = np.random.default_rng(difficulty_seed).permutation(images) / images
    luck = np.random.default_rng([7, seed])
    redrawn = luck.random(images) < changed
    wrong = np.where(redrawn, luck.random(images), difficulty) >= accuracy
    return Predictions.of(labels, (labels + wrong) % CLASSES)


def falling(start=2.3, end=0.4, steps=STEPS, noise=0.05, seed=0):
    curve = end + (start - end) * np.exp(-np.arange(steps) / (steps / 6))
    return curve + noise * np.random.default_rng(seed).standard_normal(steps)


def make_run(
    cell=None, *, accuracy=0.85, losses=None, predicted=None, sites=None, first=None, nonfinite=None, **record
):
    cell = make_cell() if cell is None else cell
    losses = falling() if losses is None else np.asarray(losses, float)
    predicted = predictions(accuracy) if predicted is None else predicted
    measured = float(predicted.correct.mean()) if predicted.labels else accuracy
    epochs = tuple(
        EpochRecord(
            measured * share, float(losses[-1]), float(losses[-1]), 1000, 10, sites=(sites or {}) if share == 1 else {}
        )
        for share in (0.9, 1.0)
    )
    made = Record(
        id=cell.id,
        cell=cell.to_json(),
        numerics_version=1,
        data=DataFacts("fashion-mnist-sample", "5a" * 32, 6000, len(predicted.label_array) or 2000, CLASSES),
        environment=Environment("cpu", 1, "AVX2", "2.13.0+cpu"),
        status="finished" if nonfinite is None else "nonfinite",
        steps=len(losses),
        steps_per_epoch=max(1, len(losses) // EPOCHS),
        nonfinite=nonfinite,
        epochs=epochs,
        first={name: Offence(site, step) for name, (site, step) in (first or {}).items()},
        predictions=predicted,
        norm_layers={"bn1": NormLayerRecord(str(cell.model.norm), 16384, 16, 0, 0.5, 2.0, 1e-5)},
    )
    steps = tuple(Step(i, float(loss), 1.0, 0.1) for i, loss in enumerate(losses))
    return Run(replace(made, **record), steps)


def bell(centre, width, count, **others):
    """A histogram of about `count` values, normal over the binades around `centre`."""
    exponents = np.arange(centre - 4 * width, centre + 4 * width + 1)
    weights = np.exp(-0.5 * ((exponents - centre) / width) ** 2)
    counts = np.round(count * weights / weights.sum()).astype(int)
    return Histogram({int(e): int(n) for e, n in zip(exponents, counts, strict=True) if n}, **others)


def site_tally(centre, width, *, count=1_000_000, limit=16, least=-25):
    """The tally of a site with a bell of exponents, rounded in a format of the binades `least + 1` to `limit - 1`."""
    histogram = bell(centre, width, count)
    over = sum(n for e, n in histogram.binades.items() if e >= limit)
    under = sum(n for e, n in histogram.binades.items() if e < least)
    low, high = min(histogram.binades), max(histogram.binades)
    return Tally(
        histogram.finite_nonzero,
        overflow=over,
        underflow=under,
        largest=1.5 * 2.0**high,
        smallest=2.0**low,
        histogram=histogram,
    )


LAYERS = ("stem", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1", "layer2.0.bn2")
OPERATIONS = {
    "mean.sum": (3, 2),
    "centre": (0, 2),
    "square": (0, 4),
    "dispersion.sum": (8, 2),
    "variance": (0, 2),
    "divide": (0, 2),
}


def story_sites(scale, *, norm="l2", rounded=True):
    """The ledger of a small residual net fed inputs times `scale`: the stem's square grows twice as fast."""
    sites = {}
    for layer in LAYERS:
        shift = int(np.log2(scale)) if layer == "stem" else 0
        for operation, (centre, width) in OPERATIONS.items():
            name = "abs" if operation == "square" and norm != "l2" else operation
            degree = 2 if operation in ("square", "dispersion.sum", "variance") and norm == "l2" else 1
            wide = not rounded or operation.endswith("sum")
            sites[f"{layer}.{name}[forward]"] = site_tally(
                centre + degree * shift, width, limit=128 if wide else 16, least=-149 if wide else -25
            )
        sites[f"{layer}.grad[backward]"] = site_tally(
            -16, 3, limit=16 if rounded else 128, least=-25 if rounded else -149
        )
    return sites


def story(seeds=(0, 1, 2), scales=(1.0, 256.0), norms=("l2", "l1", "linf")):
    """The runs of a resnet18_fp16-like grid: fp16 l2 collapses at scale 256, the others survive."""
    squares = str(Precision.parse("fp16;square=fp32"))
    return [
        run
        for norm in norms
        for scale in scales
        for seed in seeds
        for run in (
            _story_run(norm, "native", scale, seed),
            _story_run(norm, FP16, scale, seed),
            _story_run(norm, squares, scale, seed),
        )
    ]


def _story_run(norm, precision, scale, seed):
    cell = make_cell(norm, precision, seed, scale)
    index = ("native", FP16).index(precision) if precision in ("native", FP16) else 2
    accuracy = {"l2": 0.85, "l1": 0.84, "linf": 0.82}[norm]
    collapses = norm == "l2" and precision == FP16 and scale > 100
    losses = falling(seed=seed * 3 + index)
    if collapses:
        losses = np.log(10) + 0.02 * np.random.default_rng(seed).standard_normal(STEPS)
    predicted = predictions(0.1 if collapses else accuracy, seed=seed * 3 + index, changed=0.02 if index else 0.01)
    run = make_run(
        cell, predicted=predicted, losses=losses, sites=story_sites(scale, norm=norm, rounded=precision != "native")
    )
    layers = {
        layer: NormLayerRecord(
            norm,
            16384,
            16,
            16 if collapses and layer == "stem" else 0,
            0.4,
            float(2 * scale) if layer == "stem" else 2.0,
            1e-5,
        )
        for layer in LAYERS
    }
    firsts = (
        {"overflow": ("stem.square[forward]", 0), "inf_propagated": ("stem.dispersion.sum[forward]", 0)}
        if collapses
        else {}
    )
    first = {name: Offence(site, step) for name, (site, step) in firsts.items()}
    probes = (
        ()
        if precision == "native"
        else tuple(Probe(step, 0.01 * step, 0.99 - 0.001 * step) for step in range(0, STEPS, 20))
    )
    return replace(run, record=replace(run.record, norm_layers=layers, first=first, probes=probes))


def nonfinite_run(cell, *, step=12):
    """A run whose loss became NaN in `step`, from an overflow at the stem's square."""
    losses = np.append(falling()[:step], np.nan)
    firsts = {
        "overflow": ("stem.square[forward]", 3),
        "nan_produced": ("layer1.0.bn1.divide[forward]", step),
        "nan_propagated": ("fc.addmm[forward]", step),
    }
    sites = {
        "stem.square[forward]": Tally(1000, overflow=40, largest=2.0**20),
        "layer1.0.bn1.divide[forward]": Tally(1000, nan_produced=3),
    }
    run = make_run(
        cell,
        losses=losses,
        predicted=Predictions(),
        sites=sites,
        first=firsts,
        nonfinite=Nonfinite(step, "loss", "fc.addmm[forward]"),
    )
    return replace(run, record=replace(run.record, epochs=run.record.epochs[-1:]))
