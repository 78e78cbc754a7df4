"""The catalogue of networks for tokens; readable without torch. Networks for images are `models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normstab.errors import NormstabError
from normstab.experiment.scenario.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from normstab.experiment.network.networks import TokenTask
    from normstab.experiment.network.transformer import Form

__all__ = ["LANGUAGE_MODELS", "LanguageRow", "build_language_model", "require_language_model"]


@dataclass(frozen=True)
class LanguageRow:
    """A network for tokens: `takes` is the kind of token set, the numbers its own size where a scenario gives none."""

    summary: str
    takes: str
    width: int
    layers: int
    heads: int
    build: Callable[[TokenTask, Form], nn.Module]


def _transformer(task: TokenTask, form: Form) -> nn.Module:
    from normstab.experiment.network.transformer import Transformer

    return Transformer(task, form)


def _causal_lm(task: TokenTask, form: Form) -> nn.Module:
    from normstab.experiment.network.transformer import CausalLanguageModel

    return CausalLanguageModel(task, form)


# Sources: Vaswani et al. 2017, section 3; Xiong et al. 2020 (the place of the norms).
LANGUAGE_MODELS: dict[str, LanguageRow] = {
    "transformer": LanguageRow("encoder and decoder, norms before each part", "pairs", 64, 2, 4, _transformer),
    "causal-lm": LanguageRow("decoder alone, norms before each part", "text", 64, 2, 4, _causal_lm),
}


def require_language_model(spec: ModelSpec) -> None:
    """Raise NormstabError for settings that only images have, and for heads that do not divide the width."""
    row = LANGUAGE_MODELS[spec.name]
    is_set = {"args": bool(spec.args), "stem": spec.stem != "small", f"init {spec.init}": spec.init == "he-fan-out"}
    for name, is_wrong in is_set.items():
        if is_wrong:
            raise NormstabError(f"model {spec.name!r} has no model.{name}; leave it out")
    width, heads = spec.width or row.width, spec.heads or row.heads
    if width % heads:
        raise NormstabError(f"model {spec.name!r}: model.heads {heads} does not divide model.width {width}")


def build_language_model(spec: ModelSpec, task: TokenTask) -> nn.Module:
    """Return the network of LANGUAGE_MODELS that `spec` describes, its weights as torch makes them."""
    from normstab.experiment.network.transformer import Form

    row = LANGUAGE_MODELS[spec.name]
    return row.build(
        task, Form(spec.width or row.width, spec.layers or row.layers, spec.heads or row.heads, spec.norm_layer)
    )
