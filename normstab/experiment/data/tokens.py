"""TokenDataset: sequences of tokens as tensors, and batches of them, trimmed to their longest sequence.

Shapes: N sequences, S source tokens, T target tokens; int64. A batch is what a network takes and the targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.experiment.data.token_sources import BEGIN, IGNORED, PAD, TokenSource
from normstab.experiment.network.networks import TokenTask
from normstab.experiment.scenario.spec import DatasetSpec

__all__ = ["TokenDataset", "make_token_dataset"]


class Lengths(NamedTuple):
    """How many tokens the source and the target of every training sequence have, on the host."""

    sources: Tensor
    targets: Tensor


@dataclass(frozen=True)
class TokenDataset:
    """Training and test sequences for a network that chooses among `classes` tokens.

    Of `pairs` the network takes sources and, shifted by one, the targets (teacher forcing); of `text` the windows.
    """

    name: str
    sha256: str
    kind: str
    sources: int
    classes: int
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def task(self) -> TokenTask:
        """What a network for this set must do."""
        return TokenTask(self.kind, self.sources, self.classes, self.train_x.shape[1], self.train_y.shape[1])

    def augmentation(self, seed: int, epoch: int) -> None:
        """Return None: tokens do not move."""

    def train_batch(self, index: Tensor, augmentation: object = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return what a network takes of the training sequences numbered `index`, and their targets.

        With `index` on the host nothing waits for the data's device: how long its sequences are is known there.
        """
        on_device, on_host = index.to(self.train_x.device, non_blocking=True), index.cpu()
        longest = [int(lengths[on_host].max()) if len(index) else 0 for lengths in self._lengths]
        return self._trimmed(self.train_x[on_device], self.train_y[on_device], *longest)

    def predictions(self, index: Tensor) -> int:
        """Return how many predictions the training sequences numbered `index` ask for: one for each target token."""
        return int(self._lengths.targets[index.cpu()].sum())

    @cached_property
    def _lengths(self) -> Lengths:
        """The lengths of the training sequences; padding is at the ends of rows."""
        return Lengths((self.train_x != PAD).sum(1).cpu(), (self.train_y != IGNORED).sum(1).cpu())

    def test_batches(self, batch: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield the test sequences in order, `batch` at a time, and their targets."""
        for x, y in zip(torch.split(self.test_x, batch), torch.split(self.test_y, batch), strict=True):
            yield self._batch(x, y)

    def _batch(self, x_NS: Tensor, y_NT: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the batch without the columns that are padding in every row."""
        if self.kind == "text":
            return (x_NS,), y_NT
        return self._trimmed(x_NS, y_NT, _longest(x_NS != PAD), _longest(y_NT != IGNORED))

    def _trimmed(
        self, x_NS: Tensor, y_NT: Tensor, source_columns: int, target_columns: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the batch of so many columns; that of `text` is whole."""
        if self.kind == "text":
            return (x_NS,), y_NT
        y_NT = y_NT[:, :target_columns]
        return (x_NS[:, :source_columns], shifted(y_NT)), y_NT


def shifted(y_NT: Tensor) -> Tensor:
    """Return what a decoder has seen before each target: BEGIN, then the targets but the last, then padding."""
    before = torch.cat([torch.full_like(y_NT[:, :1], BEGIN), y_NT[:, :-1]], dim=1)
    return before.masked_fill(before == IGNORED, PAD)


def _longest(is_token_NT: Tensor) -> int:
    """Return how many columns hold a token; padding is at the ends of rows."""
    return int(is_token_NT.any(0).sum())


def make_token_dataset(spec: DatasetSpec, source: TokenSource, *, device: str) -> TokenDataset:
    """Return the first sequences of `source`, as many as `spec` wants; raise NormstabError where there are fewer."""
    parts = []
    for arrays, wanted, what in ((source.train, spec.train, "training"), (source.test, spec.test, "test")):
        if wanted is not None and wanted > len(arrays[0]):
            raise NormstabError(f"{wanted} {what} sequences were asked for, the set has {len(arrays[0])}")
        parts += [torch.from_numpy(array[:wanted].copy()).to(device) for array in arrays]
    return TokenDataset(spec.name, source.sha256, source.kind, source.sources, source.targets, *parts)
