"""Readers of image sets as they lie on disk: the embedded sample, IDX files, CIFAR batches, synthetic images.

Each returns a Source: uint8 arrays as numpy, N C H W. Nothing is downloaded, resized or normalised here, and
nothing needs torch. Folders of image files: `folders`.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from normstab.errors import NormstabError
from normstab.experiment.data.pickled_batches import read_batch
from normstab.experiment.records.files import open_plain_file, read_plain_file

__all__ = [
    "Images",
    "Pixels",
    "Source",
    "read_cifar10",
    "read_cifar100",
    "read_fashion_mnist",
    "read_sample",
    "synthesise",
]

# Images as numpy, N C H W.
Pixels = NDArray[np.uint8]
SAMPLE = Path(__file__).parent / "samples" / "fashion_mnist_sample.npz"
DEBIAN_ROOT = Path("/usr/share/datasets/fashion-mnist")


class Images(Protocol):
    """Images by number: an array, or files decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: NDArray[np.int64], /) -> Pixels: ...


@dataclass(frozen=True)
class Source:
    """Images N C H W and their labels, training and test, and the sha256 of what was read."""

    train: Images
    train_labels: NDArray[np.int64]
    test: Images
    test_labels: NDArray[np.int64]
    classes: int
    sha256: str


def read_sample(_: Path | None = None) -> Source:
    """Return the embedded sample of Fashion-MNIST: 600 training and 200 test images of each of 10 classes."""
    with np.load(SAMPLE, allow_pickle=False) as arrays:
        parts = [np.asarray(arrays[name]) for name in ("train_images", "train_labels", "test_images", "test_labels")]
    return _source(parts[0][:, None], parts[1], parts[2][:, None], parts[3], 10)


def read_fashion_mnist(root: Path | None = None) -> Source:
    """Return the full Fashion-MNIST set from the IDX files in `root`, or in the Debian package's folder."""
    folder = DEBIAN_ROOT if root is None else root
    names = (("train-images-idx3", 3), ("train-labels-idx1", 1), ("t10k-images-idx3", 3), ("t10k-labels-idx1", 1))
    if not _idx_path(folder, names[0][0]).exists():
        raise NormstabError(
            f"no Fashion-MNIST at {folder}: give dataset.root, a folder with train-images-idx3-ubyte.gz, or install "
            f"Debian's dataset-fashion-mnist to {DEBIAN_ROOT}; fashion-mnist-sample needs neither"
        )
    train, train_labels, test, test_labels = (_read_idx(_idx_path(folder, name), rank=rank) for name, rank in names)
    return _source(train[:, None], train_labels, test[:, None], test_labels, 10)


def _idx_path(folder: Path, name: str) -> Path:
    """Return the packed or the unpacked IDX file called `name`, the packed one when neither is there."""
    plain = folder / f"{name}-ubyte"
    return plain if plain.exists() else folder / f"{name}-ubyte.gz"


def _read_idx(path: Path, *, rank: int) -> Pixels:
    """Return the uint8 array of `rank` axes in an IDX file: 0, 0, type 8, rank, the sizes big endian, the bytes.

    No more is unpacked than the header says, so that a small file cannot become a large one in memory.
    """
    try:
        with open_plain_file(path, "rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            head = file.read(4 + 4 * rank)
            if head[:4] != bytes((0, 0, 8, rank)) or len(head) < 4 + 4 * rank:
                raise NormstabError(f"{path}: not an IDX file of bytes with {rank} axes")
            shape = tuple(int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4))
            if math.prod(shape) > MOST_BYTES:
                raise NormstabError(f"{path}: its header says {math.prod(shape)} bytes, more than {MOST_BYTES}")
            content = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise NormstabError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) != math.prod(shape):
        raise NormstabError(f"{path}: not the {math.prod(shape)} bytes that its header says")
    return np.frombuffer(content, np.uint8).reshape(shape)


MOST_BYTES = 2**30
"""Of one array; Fashion-MNIST's largest has 47 MB."""
SIDE = 32
PIXELS = 3 * SIDE * SIDE


def read_cifar10(root: Path | None = None) -> Source:
    """Return CIFAR-10 from its python or its binary batches, in `root` or in the folder they unpack to there."""
    train = [f"data_batch_{i}" for i in range(1, 6)]
    return _read_cifar(root, "cifar-10-batches", train, ["test_batch"], labels=(b"labels", 1), classes=10)


def read_cifar100(root: Path | None = None) -> Source:
    """Return CIFAR-100 with its 100 fine labels, from its python or its binary files, found as CIFAR-10's are."""
    return _read_cifar(root, "cifar-100", ["train"], ["test"], labels=(b"fine_labels", 2), classes=100)


def _read_cifar(
    root: Path | None, folder: str, train: list[str], test: list[str], *, labels: tuple[bytes, int], classes: int
) -> Source:
    """Return the batches named `train` and `test`; `labels`: the python key, and how many label bytes lead a record."""
    if root is None:
        raise NormstabError(f"{folder}: give dataset.root, the folder of the python or binary batches")
    for place in (root, *(root / f"{folder}-{form}" for form in ("py", "bin", "python", "binary"))):
        is_python = (place / train[0]).exists()
        if is_python or (place / f"{train[0]}.bin").exists():
            read = _PythonBatches(place, labels[0]) if is_python else _BinaryBatches(place, labels[1])
            return _source(*_joined(read, train, classes), *_joined(read, test, classes), classes)
    raise NormstabError(f"no {folder} in {root}: expected {train[0]} (python) or {train[0]}.bin (binary) there")


def _joined(read: _PythonBatches | _BinaryBatches, names: Sequence[str], classes: int) -> tuple[Pixels, Any]:
    """Return the images and labels of several batches as one; a label beyond the classes names its file."""
    batches = [read.batch(name) for name in names]
    for name, (images, labels) in zip(names, batches, strict=True):
        if len(images) != len(labels) or int(np.max(labels)) >= classes:
            raise NormstabError(f"{read.place / name}: {len(images)} images, {len(labels)} labels of {classes} classes")
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


@dataclass(frozen=True)
class _BinaryBatches:
    """Files of records: `label_bytes` labels, the last one kept, then 3 x 32 x 32 bytes."""

    place: Path
    label_bytes: int

    def batch(self, name: str) -> tuple[Pixels, Pixels]:
        """Return the images and labels of one file."""
        path = self.place / f"{name}.bin"
        try:
            content = np.frombuffer(read_plain_file(path), np.uint8)
        except OSError as error:
            raise NormstabError(f"{path}: cannot read: {error.strerror or error}") from error
        record = self.label_bytes + PIXELS
        if content.size == 0 or content.size % record:
            raise NormstabError(f"{path}: {content.size} bytes are not whole records of {record}")
        rows = content.reshape(-1, record)
        return rows[:, self.label_bytes :].reshape(-1, 3, SIDE, SIDE), rows[:, self.label_bytes - 1]


@dataclass(frozen=True)
class _PythonBatches:
    """Pickled dicts: b"data" has one row of 3072 bytes per image, `key` the labels."""

    place: Path
    key: bytes

    def batch(self, name: str) -> tuple[Pixels, NDArray[np.int64]]:
        """Return the images and labels of one file."""
        rows, labels = read_batch(self.place / name, self.key, pixels=PIXELS)
        return rows.reshape(-1, 3, SIDE, SIDE), labels


def synthesise(_: Path | None = None) -> Source:
    """Return 2000 + 500 images 3 x 16 x 16 of ten classes: a class's own pattern under noise, equal for ever."""
    n_train, n_test, classes, shape = 2000, 500, 10, (3, 16, 16)
    bits = np.random.Philox(key=20180511)
    pattern = (_random_bytes(bits, (classes, 3, 4, 4)) // 2).repeat(4, axis=2).repeat(4, axis=3)
    labels = np.arange(n_train + n_test) % classes
    noise = _random_bytes(bits, (n_train + n_test, *shape)) // 2
    images = (pattern[labels] + noise).astype(np.uint8)
    return _source(images[:n_train], labels[:n_train], images[n_train:], labels[n_train:], classes)


def _random_bytes(bits: np.random.Philox, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return uniform bytes as integers, from the generator's raw words: the same in every numpy."""
    n = int(np.prod(shape))
    words = np.asarray(bits.random_raw(-(-n // 8)), "<u8")
    return words.view(np.uint8)[:n].astype(np.int64).reshape(shape)


def _source(train: Pixels, train_labels: Any, test: Pixels, test_labels: Any, classes: int) -> Source:
    """Return the Source of four arrays, with their hash; raise when images and labels do not match."""
    for part, images, labels in (("training", train, train_labels), ("test", test, test_labels)):
        if len(images) != len(labels) or len(images) == 0 or int(np.max(labels)) >= classes:
            raise NormstabError(f"{part} set: {len(images)} images, {len(labels)} labels of {classes} classes")
    labels_of = [np.asarray(labels, np.int64) for labels in (train_labels, test_labels)]
    return Source(train, labels_of[0], test, labels_of[1], classes, hash_of(train, labels_of[0], test, labels_of[1]))


def hash_of(*arrays: NDArray[Any]) -> str:
    """Return the sha256 of the arrays' shapes and bytes, integers as uint16 little endian."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array if array.dtype == np.uint8 else array.astype("<u2")).data)
    return digest.hexdigest()
