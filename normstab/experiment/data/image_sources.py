"""Readers of image sets as they lie on disk: the embedded sample, IDX files, CIFAR batches, synthetic images.

Each returns a Source: uint8 arrays as numpy, N C H W. Nothing is downloaded, resized or normalised here, and
nothing needs torch. Folders of image files: `folders`.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from normstab.errors import NormstabError

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
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    if not _idx_path(folder, names[0]).exists():
        raise NormstabError(
            f"no Fashion-MNIST at {folder}: give dataset.root, a folder with train-images-idx3-ubyte.gz, or install "
            f"Debian's dataset-fashion-mnist to {DEBIAN_ROOT}; fashion-mnist-sample needs neither"
        )
    train, train_labels, test, test_labels = (_read_idx(_idx_path(folder, name)) for name in names)
    return _source(train[:, None], train_labels, test[:, None], test_labels, 10)


def _idx_path(folder: Path, name: str) -> Path:
    """Return the packed or the unpacked IDX file called `name`, the packed one when neither is there."""
    plain = folder / f"{name}-ubyte"
    return plain if plain.exists() else folder / f"{name}-ubyte.gz"


def _read_idx(path: Path) -> Pixels:
    """Return the uint8 array in an IDX file: 0, 0, type 8, rank, the sizes big endian, the bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise NormstabError(f"{path}: cannot read: {error}") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise NormstabError(f"{path}: not an IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, 4).astype(int)
    if len(content) != 4 + 4 * rank + shape.prod():
        raise NormstabError(f"{path}: {len(content)} bytes, its header says {4 + 4 * rank + shape.prod()}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


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
            return _source(*_joined(read, train), *_joined(read, test), classes)
    raise NormstabError(f"no {folder} in {root}: expected {train[0]} (python) or {train[0]}.bin (binary) there")


def _joined(read: _PythonBatches | _BinaryBatches, names: Sequence[str]) -> tuple[Pixels, Pixels]:
    """Return the images and labels of several batches as one."""
    batches = [read.batch(name) for name in names]
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


@dataclass(frozen=True)
class _BinaryBatches:
    """Files of records: `label_bytes` labels, the last one kept, then 3 x 32 x 32 bytes."""

    place: Path
    label_bytes: int

    def batch(self, name: str) -> tuple[Pixels, Pixels]:
        """Return the images and labels of one file."""
        path = self.place / f"{name}.bin"
        content = np.frombuffer(path.read_bytes(), np.uint8)
        record = self.label_bytes + PIXELS
        if content.size == 0 or content.size % record:
            raise NormstabError(f"{path}: {content.size} bytes are not whole records of {record}")
        rows = content.reshape(-1, record)
        return rows[:, self.label_bytes :].reshape(-1, 3, SIDE, SIDE), rows[:, self.label_bytes - 1]


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build arrays and nothing else: a batch file must not run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode", "_frombuffer"})
    MODULES = frozenset({"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric", "_codecs"})

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickled array needs; refuse the rest."""
        if module in self.MODULES and name in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an image batch")


@dataclass(frozen=True)
class _PythonBatches:
    """Pickled dicts: b"data" has one row of 3072 bytes per image, `key` the labels."""

    place: Path
    key: bytes

    def batch(self, name: str) -> tuple[Pixels, Pixels]:
        """Return the images and labels of one file."""
        path = self.place / name
        try:
            with path.open("rb") as file:
                batch = _ArraysOnly(file, encoding="bytes").load()
            rows = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, SIDE, SIDE)
            return rows, np.asarray(batch[self.key], np.uint8)
        except (pickle.UnpicklingError, KeyError, EOFError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise NormstabError(f"{path}: not a python batch of CIFAR: {error}") from error


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
