"""Make fashion_mnist_sample.npz from the full set: `python -m normstab.experiment.data.samples.make_sample [FOLDER]`.

Takes the first 600 training and the first 200 test images of each class, in the set's own order, after checking
the sha256 of the four files of Debian's dataset-fashion-mnist as packed. The result depends on nothing else.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from normstab.errors import NormstabError
from normstab.experiment.data.image_sources import DEBIAN_ROOT, SAMPLE, read_fashion_mnist
from normstab.experiment.data.sampling import stratified

__all__ = ["make_sample"]

# How many images of the full set the sample keeps, the same number of each class.
TRAIN_IMAGES, TEST_IMAGES = 6000, 2000

# Source: Debian's dataset-fashion-mnist 0.0~git20200523, the .gz files as installed.
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


def make_sample(folder: Path = DEBIAN_ROOT, target: Path = SAMPLE) -> None:
    """Write the sample of the set in `folder` to `target`; raise NormstabError when a file is not the known one."""
    for name, expected in SHA256.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != expected:
            raise NormstabError(f"{folder / name}: sha256 is {found}, expected {expected}")
    full = read_fashion_mnist(folder)
    train = stratified(full.train_labels, TRAIN_IMAGES)
    test = stratified(full.test_labels, TEST_IMAGES)
    np.savez_compressed(
        target,
        train_images=full.train[train][:, 0],
        train_labels=full.train_labels[train].astype(np.uint8),
        test_images=full.test[test][:, 0],
        test_labels=full.test_labels[test].astype(np.uint8),
    )


if __name__ == "__main__":
    make_sample(*(Path(argument) for argument in sys.argv[1:]))
