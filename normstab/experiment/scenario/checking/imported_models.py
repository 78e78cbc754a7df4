"""Whether the user's own functions that a scenario names as models can be imported. This runs their modules' code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from normstab.errors import NormstabError
from normstab.experiment.network.users_code import load_function
from normstab.experiment.scenario.checking.checks import LIBRARIES
from normstab.experiment.scenario.checking.problems import Problem
from normstab.experiment.scenario.scenario_text import Loc
from normstab.experiment.scenario.settings import value_at

__all__ = ["unimportable_models"]


def unimportable_models(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each `module:function` of a valid document that does not import or is no function."""
    for loc, name in _names(document):
        library, colon, _ = name.partition(":")
        if not colon or library in LIBRARIES:
            continue
        try:
            load_function(name)
        except NormstabError as error:
            yield Problem(loc, str(error))


def _names(document: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Yield every name of a model with its place: the document's own, those of axes and those of variants."""
    yield ("model", "name"), document["model"]["name"]
    entries = [(("include", index), entry) for index, entry in enumerate(document.get("include") or ())]
    for place, axes in [(("grid",), document.get("grid") or {}), *entries]:
        values = axes.get("model.name", [])
        for index, name in enumerate(values if isinstance(values, list) else [values]):
            yield ((*place, "model.name", index) if isinstance(values, list) else (*place, "model.name")), name
    for variant in document.get("variants") or {}:
        name = value_at(document, ("variants", variant, "model.name"))
        if name is not None:
            yield ("variants", variant, "model.name"), name
