"""Data files are not trusted: whatever is in them, reading ends with arrays of the right kind or a named error."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normstab.errors import NormstabError
from normstab.experiment.data.image_sources import read_cifar10, read_fashion_mnist
from normstab.experiment.data.pickled_batches import read_batch
from tests.experiment.test_datasets import write_cifar10, write_idx

ROWS = np.arange(2 * 12, dtype=np.uint8).reshape(2, 12)


def batch(**changes: Any) -> dict[bytes, Any]:
    return {b"data": ROWS, b"labels": [3, 7], **{name.encode(): value for name, value in changes.items()}}


class Runs:
    """What a hostile pickle makes of `os.system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


class Objects:
    """An array of objects whose "pointers" are the bytes of the file: numpy would follow them."""

    def __reduce__(self) -> tuple[Any, ...]:
        state = (1, (3072,), np.dtype("O"), False, b"\x41" * 8 * 3072)
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


class Longer:
    """An array that claims more elements than there are bytes."""

    def __reduce__(self) -> tuple[Any, ...]:
        state = (1, (2**20, 12), np.dtype("u1"), False, b"\x41" * 24)
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("labels", [[3, 7], np.array([3, 7]), np.array([3, 7], np.uint8)], ids=str)
def test_an_honest_batch_is_read_in_every_protocol(tmp_path: Path, protocol: int, labels: Any) -> None:
    path = tmp_path / "batch"
    for rows in (ROWS, np.asfortranarray(ROWS)):
        path.write_bytes(pickle.dumps({b"data": rows, b"labels": labels}, protocol=protocol))
        found, found_labels = read_batch(path, b"labels", pixels=12)
        assert np.array_equal(found, ROWS) and found.dtype == np.uint8
        assert found_labels.tolist() == [3, 7] and found_labels.dtype == np.int64


HOSTILE: dict[str, Any] = {
    "runs a command": Runs(),
    "objects": batch(data=Objects()),
    "longer than its bytes": batch(data=Longer()),
    "big endian": batch(data=ROWS.astype(">i8")),
    "wide": batch(data=ROWS.astype(np.int64)),
    "floats": batch(data=ROWS.astype(float)),
    "other rows": batch(data=ROWS[:, :11].copy()),
    "no rows": batch(data=ROWS[:0]),
    "a list": [1, 2],
    "without labels": {b"data": ROWS},
    "labels of another kind": batch(labels=[3, 7.5]),
    "labels below 0": batch(labels=[3, -1]),
    "labels beyond a byte": batch(labels=[3, 10**30]),
    "labels of two axes": batch(labels=np.zeros((2, 2), np.int64)),
    "bools": batch(labels=[True, False]),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_batch_is_an_error_that_names_the_file(tmp_path: Path, name: str, protocol: int) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(HOSTILE[name], protocol=protocol))
    with pytest.raises(NormstabError, match=str(path)):
        read_batch(path, b"labels", pixels=12)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_any_damage_to_a_batch_is_read_as_arrays_or_is_a_named_error(tmp_path: Path, protocol: int) -> None:
    path, chance = tmp_path / "batch", random.Random(protocol)
    whole = pickle.dumps(batch(), protocol=protocol)
    refused = 0
    for _ in range(500):
        torn = bytearray(whole[: chance.randrange(len(whole) + 1)] if chance.random() < 0.2 else whole)
        for _ in range(chance.randrange(4)):
            torn[chance.randrange(len(torn) or 1) : chance.randrange(len(torn) + 1)] = chance.randbytes(1)
        path.write_bytes(torn)
        try:
            rows, labels = read_batch(path, b"labels", pixels=12)
            assert rows.dtype == np.uint8 and labels.dtype == np.int64
        except NormstabError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100


def damage(root: Path, how: str) -> str:
    """Damage the set under `root` in one way, and return the name of the damaged file."""
    images, labels = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"
    content = (root / images).read_bytes()
    if how == "missing":
        (root / labels).unlink()
    elif how == "a label of 10":
        (root / labels).write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 20) + b"\x0a" * 20)
        return "training set"
    elif how == "short header":
        (root / labels).write_bytes(b"\0\0\x08\x01\0\0")
    elif how == "another rank":
        (root / labels).write_bytes(struct.pack(">BBBBII", 0, 0, 8, 2, 20, 1) + b"\0" * 20)
    elif how == "corrupt gzip":
        (root / images).write_bytes(content[:40] + bytes(255 - byte for byte in content[40:80]) + content[80:])
        return images
    elif how == "torn gzip":
        (root / images).write_bytes(content[: len(content) // 2])
        return images
    elif how == "a bomb":
        (root / images).write_bytes(gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 2**31, 28, 28)))
        return images
    elif how == "more than its header says":
        (root / labels).write_bytes((root / labels).read_bytes() + b"\0")
    return labels


@pytest.mark.parametrize(
    "how",
    [
        *("missing", "a label of 10", "short header", "another rank", "corrupt gzip", "torn gzip", "a bomb"),
        "more than its header says",
    ],
)
def test_a_damaged_idx_set_is_an_error_that_names_the_file(tmp_path: Path, how: str) -> None:
    write_idx(tmp_path, 20)
    name = damage(tmp_path, how)
    with pytest.raises(NormstabError, match=name):
        read_fashion_mnist(tmp_path)


CIFAR_DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("how", CIFAR_DAMAGE)
def test_a_damaged_cifar_batch_is_an_error_that_names_the_file(tmp_path: Path, how: str, form: str) -> None:
    write_cifar10(tmp_path, form)
    path = tmp_path / ("data_batch_3" if form == "python" else "data_batch_3.bin")
    CIFAR_DAMAGE[how](path)
    with pytest.raises(NormstabError, match=str(path)):
        read_cifar10(tmp_path)


def test_a_cifar_label_beyond_the_classes_names_its_batch(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "binary")
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(NormstabError, match="data_batch_2"):
        read_cifar10(tmp_path)
