"""The hashes of what cells read, their data and the code of their models, each computed once for a whole grid."""

from __future__ import annotations

import json
from pathlib import Path

from normstab.errors import NormstabError, ScenarioError
from normstab.experiment.network.model_code import code_sha256
from normstab.experiment.scenario.spec import DatasetSpec, ModelSpec

__all__ = ["ReadHashes"]


class ReadHashes:
    """Hashes for the scenario at `path`; where nothing is to be read (`are_read` False) they are empty."""

    def __init__(self, path: str | Path, *, are_read: bool) -> None:
        self._path, self._are_read = path, are_read
        self._data: dict[str, str] = {}
        self._code: dict[str, str] = {}

    def of_code(self, model: ModelSpec) -> str:
        """Return the hash of the model's code."""
        if self._are_read and model.name not in self._code:
            self._code[model.name] = code_sha256(model.name)
        return self._code.get(model.name, "")

    def of_data(self, dataset: DatasetSpec) -> str:
        """Return the hash of the data; raise ScenarioError where they are not there."""
        if not self._are_read:
            return ""
        from normstab.experiment.data.datasets import data_sha256

        key = json.dumps([dataset.name, dataset.root, dataset.size])
        if key not in self._data:
            try:
                self._data[key] = data_sha256(dataset)
            except NormstabError as error:
                raise ScenarioError(f"{self._path}: dataset: {error}") from error
        return self._data[key]
