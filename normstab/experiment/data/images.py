"""Dataset: images as tensors, normalised, augmented and scaled when a batch is taken.

Pixels stay uint8 until then. Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.experiment.data.image_sources import Images, Pixels, Source
from normstab.experiment.data.sampling import moves
from normstab.experiment.network.networks import Task
from normstab.experiment.scenario.spec import DatasetSpec

__all__ = ["Augmentation", "Dataset", "make_dataset"]

# Source: torchvision.models, the statistics of ImageNet's training set in units of 255.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAD_FRACTION = 8


@dataclass(frozen=True)
class Augmentation:
    """The moves of every training image in one epoch, on the data's device; None where not asked for."""

    pad: int
    down: Tensor | None
    right: Tensor | None
    is_flipped: Tensor | None

    def apply(self, x_NCHW: Tensor, index: Tensor) -> Tensor:
        """Return the images numbered `index`, cropped from their zero-padded selves and flipped."""
        if self.down is not None and self.right is not None:
            x_NCHW = _cropped(x_NCHW, self.pad, self.down[index], self.right[index])
        if self.is_flipped is not None:
            x_NCHW = torch.where(self.is_flipped[index][:, None, None, None], x_NCHW.flip(-1), x_NCHW)
        return x_NCHW


def _cropped(x_NCHW: Tensor, pad: int, down: Tensor, right: Tensor) -> Tensor:
    """Return H x W crops of the zero-padded images, their corners at (`down`, `right`)."""
    n, _, height, width = x_NCHW.shape
    padded = torch.nn.functional.pad(x_NCHW, (pad, pad, pad, pad))
    rows = (down[:, None] + torch.arange(height, device=down.device))[:, :, None]
    columns = (right[:, None] + torch.arange(width, device=right.device))[:, None, :]
    images = torch.arange(n, device=down.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows, columns].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Dataset:
    """Training and test images of `classes` classes: uint8 N C H W tensors, or files decoded on use.

    A batch is (pixels - mean) * (scale / std) in float32, `mean` and `std` per channel over the training pixels.
    """

    name: str
    sha256: str
    classes: int
    train_x: Tensor | Images
    train_y: Tensor
    test_x: Tensor | Images
    test_y: Tensor
    mean: Tensor
    factor: Tensor
    channels: int
    side: int
    augment: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What a network for this set must do."""
        return Task(self.channels, self.side, self.classes)

    def augmentation(self, seed: int, epoch: int) -> Augmentation | None:
        """Return how the training images move in this epoch; None when they do not."""
        if not self.augment:
            return None
        pad = self.side // PAD_FRACTION
        drawn = moves(seed, epoch, len(self.train_y), pad=pad)
        device = self.train_y.device
        down, right, flips = (
            torch.from_numpy(array).to(device) for array in (drawn.down, drawn.right, drawn.is_flipped)
        )
        crops, flipped = "crop" in self.augment, "flip" in self.augment
        return Augmentation(pad, down if crops else None, right if crops else None, flips if flipped else None)

    def train_batch(self, index: Tensor, augmentation: Augmentation | None = None) -> tuple[Tensor, Tensor]:
        """Return the training images numbered `index`, ready for the network, and their labels.

        With `index` on the host nothing waits for the data's device.
        """
        pixels = self._pixels(self.train_x, index)
        index = index.to(self.train_y.device, non_blocking=True)
        if augmentation is not None:
            pixels = augmentation.apply(pixels, index)
        return self.prepare(pixels), self.train_y[index]

    def predictions(self, index: Tensor) -> int:
        """Return how many predictions the training images numbered `index` ask for."""
        return len(index)

    def test_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test images in order, `batch` at a time, and their labels."""
        numbers = torch.arange(len(self.test_y), device=self.test_y.device)
        for index in torch.split(numbers, batch):
            yield self.prepare(self._pixels(self.test_x, index)), self.test_y[index]

    def prepare(self, pixels_NCHW: Tensor) -> Tensor:
        """Return uint8 pixels as the float32 input of a network: normalised, then scaled."""
        return pixels_NCHW.float().sub_(self.mean).mul_(self.factor)

    def _pixels(self, images: Tensor | Images, index: Tensor) -> Tensor:
        """Return the uint8 pixels numbered `index` on the data's device."""
        if isinstance(images, Tensor):
            return images[index.to(images.device, non_blocking=True)]
        return torch.from_numpy(images[index.cpu().numpy()]).to(self.train_y.device, non_blocking=True)


def make_dataset(spec: DatasetSpec, source: Source, *, device: str) -> Dataset:
    """Return the Dataset of the images in `source`, which are those that `spec` selects, already resized."""
    in_memory = isinstance(source.train, np.ndarray)
    first = source.train[np.arange(1)]
    channels, side = first.shape[1], first.shape[2]
    if in_memory:
        mean, std = _statistics(np.asarray(source.train))
    else:
        mean, std = (255.0 * np.array(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return Dataset(
        name=spec.name,
        sha256=source.sha256,
        classes=source.classes,
        train_x=_on_device(source.train, device),
        train_y=torch.from_numpy(source.train_labels).to(device),
        test_x=_on_device(source.test, device),
        test_y=torch.from_numpy(source.test_labels).to(device),
        mean=_per_channel(mean, device),
        factor=_per_channel(1.0 / std, device) * spec.scale,
        channels=channels,
        side=side,
        augment=spec.augment,
    )


def _statistics(pixels_NCHW: Pixels) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and standard deviation of each channel's pixels, from their exact integer histogram."""
    levels = np.arange(256.0)
    histograms = [np.bincount(channel.ravel(), minlength=256) for channel in pixels_NCHW.swapaxes(0, 1)]
    mean = np.array([levels @ counts / counts.sum() for counts in histograms])
    variance = [(levels - m) ** 2 @ counts / counts.sum() for m, counts in zip(mean, histograms, strict=True)]
    std = np.sqrt(np.array(variance))
    return mean, np.where(std > 0, std, 1.0)


def _per_channel(values: NDArray[Any], device: str) -> Tensor:
    """Return one float32 value per channel, shaped to act on N C H W."""
    return torch.from_numpy(values.astype(np.float32)).view(1, -1, 1, 1).to(device)


def _on_device(images: Images, device: str) -> Tensor | Images:
    """Return an array as a tensor on `device`; files as they are."""
    return torch.from_numpy(np.array(images)).to(device) if isinstance(images, np.ndarray) else images
