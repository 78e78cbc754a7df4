"""The digests of a cell's first step: forward and backward of the untrained network on its first batch.

A pass of its own, so that no bit of the training depends on whether it is kept.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from normstab.experiment.data.datasets import load_dataset
from normstab.experiment.data.sampling import epoch_order
from normstab.experiment.network.models import build_model
from normstab.experiment.records.digest_file import write_digests
from normstab.experiment.scenario.spec import Cell
from normstab.experiment.training.batch_loss import batch_loss, outputs
from normstab.simulation.site_digests import digests_of

__all__ = ["keep_digests"]


def keep_digests(cell: Cell, directory: Path, *, device: str) -> None:
    """Write what each operation of the first step returns, in the cell's arithmetic, to `directory`."""
    train, numerics = cell.train, cell.numerics
    with torch.random.fork_rng(devices=[]):
        dataset = load_dataset(cell.dataset, device=device)
        model = (
            build_model(cell.model, dataset.task, seed=train.seed, weight_scale=train.weight_scale).to(device).train()
        )
        order = torch.from_numpy(epoch_order(train.seed, 0, len(dataset.train_y)))
        x, y = dataset.train_batch(order[: train.batch], dataset.augmentation(train.seed, 0))

        def run(network: nn.Module) -> None:
            batch_loss(outputs(network, x), y, train.label_smoothing).backward()

        rules = dict(numerics.rules) or None
        digests = digests_of(model, run, numerics.precision, rules=rules, seed=train.seed, expand=numerics.expand)
    write_digests(directory, digests)
