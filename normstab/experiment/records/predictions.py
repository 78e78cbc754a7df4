"""The predictions of a cell, image by image, in the compact form that a record holds them in."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Predictions"]


@dataclass(frozen=True)
class Predictions:
    """The label and the predicted class of each test image, uint16 little endian in base64."""

    labels: str = ""
    predicted: str = ""

    @staticmethod
    def of(labels: NDArray[Any], predicted: NDArray[Any]) -> Predictions:
        """Return the Predictions that hold these two integer arrays, both at most 65535."""
        return Predictions(_packed(labels), _packed(predicted))

    @property
    def label_array(self) -> NDArray[np.int64]:
        """The labels, one per test image."""
        return _unpacked(self.labels)

    @property
    def predicted_array(self) -> NDArray[np.int64]:
        """The predicted classes, one per test image."""
        return _unpacked(self.predicted)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each test image was classified rightly."""
        return np.asarray(self.label_array == self.predicted_array)


def _packed(numbers: NDArray[Any]) -> str:
    """Return small non-negative integers as base64 of uint16, little endian."""
    assert numbers.size == 0 or (numbers.min() >= 0 and numbers.max() < 2**16), "classes are counted by uint16"
    return base64.b64encode(numbers.astype("<u2").tobytes()).decode("ascii")


def _unpacked(text: str) -> NDArray[np.int64]:
    """Return the integers that `_packed` wrote."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<u2").astype(np.int64)
