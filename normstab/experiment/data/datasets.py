"""The catalogue of data sets, and loading one as a DatasetSpec says: which images, how many, how large.

Reading needs no torch, the catalogue not even numpy; `load_dataset` makes tensors of what was read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normstab.errors import NormstabError, lookup
from normstab.experiment.data.loans import Loan, lent
from normstab.experiment.data.token_sets import TOKEN_SETS, TokenRow, require_token_set
from normstab.experiment.scenario.spec import DatasetSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from normstab.experiment.data.image_sources import Images, Source
    from normstab.experiment.data.images import Dataset
    from normstab.experiment.data.token_sources import TokenSource
    from normstab.experiment.data.tokens import TokenDataset

__all__ = ["DATASETS", "EVERY_SET", "data_sha256", "lendable", "load_dataset"]

Read = Callable[[Path | None, int | None], "Source"]


@dataclass(frozen=True)
class DatasetRow:
    """A data set of the catalogue: `side` and `channels` of its images, None where the files decide.

    `read` takes the root and the side at which files are decoded.
    """

    summary: str
    read: Read
    train: int | None
    test: int | None
    classes: int | None
    channels: int
    side: int
    needs_root: bool = False


def _sample(root: Path | None, side: int | None) -> Source:
    from normstab.experiment.data.image_sources import read_sample

    return read_sample(root)


def _fashion_mnist(root: Path | None, side: int | None) -> Source:
    from normstab.experiment.data.image_sources import read_fashion_mnist

    return read_fashion_mnist(root)


def _cifar10(root: Path | None, side: int | None) -> Source:
    from normstab.experiment.data.image_sources import read_cifar10

    return read_cifar10(root)


def _cifar100(root: Path | None, side: int | None) -> Source:
    from normstab.experiment.data.image_sources import read_cifar100

    return read_cifar100(root)


def _folder(root: Path | None, side: int | None) -> Source:
    from normstab.experiment.data.folders import DEFAULT_SIDE, read_folder

    return read_folder(root, side=DEFAULT_SIDE if side is None else side)


def _synthetic(root: Path | None, side: int | None) -> Source:
    from normstab.experiment.data.image_sources import synthesise

    return synthesise(root)


# Name of a data set -> what it is and how it is read.
DATASETS: dict[str, DatasetRow] = {
    "fashion-mnist-sample": DatasetRow(
        "the embedded sample of Fashion-MNIST, 800 images of each class", _sample, 6000, 2000, 10, 1, 28
    ),
    "fashion-mnist": DatasetRow("the full Fashion-MNIST set", _fashion_mnist, 60000, 10000, 10, 1, 28),
    "cifar10": DatasetRow("CIFAR-10, python or binary batches", _cifar10, 50000, 10000, 10, 3, 32, True),
    "cifar100": DatasetRow("CIFAR-100, python or binary files", _cifar100, 50000, 10000, 100, 3, 32, True),
    "imagefolder": DatasetRow("folders of image files, one per class", _folder, None, None, None, 3, 224, True),
    "imagenet": DatasetRow("ImageNet-1k as image folders", _folder, 1281167, 50000, 1000, 3, 224, True),
    "synthetic": DatasetRow("ten patterns under noise, made from a seed", _synthetic, 2000, 500, 10, 3, 16),
}
EVERY_SET: dict[str, DatasetRow | TokenRow] = {**DATASETS, **TOKEN_SETS}
"""Images and tokens by name."""


def data_sha256(spec: DatasetSpec) -> str:
    """Return the sha256 of the set that `spec` names, whole and before any resizing."""
    if spec.name in TOKEN_SETS:
        return _read_tokens(spec.name, spec.root, spec.size).sha256
    return _read(spec.name, spec.root, spec.size).sha256


def load_dataset(spec: DatasetSpec, *, device: str = "cpu") -> Dataset | TokenDataset:
    """Return the data set that `spec` describes, its pixels or tokens on `device` unless they stay in files.

    Raises NormstabError when the name is unknown, the files are absent or damaged, or too few.
    """
    if spec.name in TOKEN_SETS:
        from normstab.experiment.data.tokens import make_token_dataset

        require_token_set(spec)
        return make_token_dataset(spec, _read_tokens(spec.name, spec.root, spec.size), device=device)
    lookup(EVERY_SET, spec.name, what="data set")
    from normstab.experiment.data.image_sources import Source
    from normstab.experiment.data.images import make_dataset

    train, train_labels, test, test_labels = _selected(spec.name, spec.root, spec.size, spec.train, spec.test)
    source = _read(spec.name, spec.root, spec.size)
    chosen = Source(train, train_labels, test, test_labels, source.classes, source.sha256)
    return make_dataset(spec, chosen, device=device)


def lendable(spec: DatasetSpec) -> Loan | None:
    """Return the set that `spec` names, read here; None where it is not here, or stays in files."""
    from normstab.experiment.data.folders import FolderImages

    read: Callable[[str, str | None, int | None], Source | TokenSource]
    read = _read_tokens if spec.name in TOKEN_SETS else _read
    try:
        source = read(spec.name, spec.root, spec.size)
    except NormstabError:
        return None
    is_in_files = isinstance(source.train, FolderImages)
    return None if is_in_files else Loan((spec.name, spec.root, spec.size), source)


@functools.lru_cache(maxsize=2)
def _read_tokens(name: str, root: str | None, size: int | None) -> TokenSource:
    """Return the whole token set, a text in windows of `size`."""
    found: TokenSource | None = lent((name, root, size))
    return found or TOKEN_SETS[name].read(_place(root), size)


@functools.lru_cache(maxsize=2)
def _read(name: str, root: str | None, size: int | None) -> Source:
    """Return the whole set; files of a folder are decoded at `size`."""
    found: Source | None = lent((name, root, size))
    if found is not None:
        return found
    row = lookup(EVERY_SET, name, what="data set")
    assert isinstance(row, DatasetRow), "token sets are read elsewhere"
    return row.read(_place(root), size)


def _place(root: str | None) -> Path | None:
    """Return the folder that `root` names, `~` included."""
    try:
        return None if root is None else Path(root).expanduser()
    except RuntimeError as error:
        raise NormstabError(f"root: {root!r}: {error}") from error


@functools.lru_cache(maxsize=2)
def _selected(
    name: str, root: str | None, size: int | None, n_train: int | None, n_test: int | None
) -> tuple[Images, NDArray[np.int64], Images, NDArray[np.int64]]:
    """Return the images chosen by number and resized, with their labels, training then test."""
    source = _read(name, root, size)
    train, train_labels = _part(source.train, source.train_labels, n_train, size)
    test, test_labels = _part(source.test, source.test_labels, n_test, size)
    return train, train_labels, test, test_labels


def _part(
    images: Images, labels: NDArray[np.int64], n: int | None, size: int | None
) -> tuple[Images, NDArray[np.int64]]:
    """Return `n` of the images (None: all) at side `size` (None: their own), with their labels."""
    import numpy as np

    from normstab.experiment.data.folders import FolderImages
    from normstab.experiment.data.resizing import resize
    from normstab.experiment.data.sampling import stratified

    kept = np.arange(len(labels)) if n is None else stratified(labels, n)
    if isinstance(images, FolderImages):
        return FolderImages(tuple(images.paths[i] for i in kept), images.side), labels[kept]
    pixels = images[kept] if n is not None else images[np.arange(len(labels))]
    return (pixels if size is None else resize(pixels, size)), labels[kept]
