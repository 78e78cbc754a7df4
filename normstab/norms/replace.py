"""Swap the norm of the normalization layers of anyone's network, in place, by rules.

A layer keeps its parameters, buffers, hooks, state_dict keys and `isinstance`: only its class changes, to a
subclass of what it was (as torch.nn.utils.parametrize does). A layer whose own forward does more than
normalize (an activation, a permutation) keeps that forward; the call of torch's functional norm inside it is
what is swapped. What cannot be swapped safely is left, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from normstab.errors import NormstabError, near
from normstab.norms import modules
from normstab.norms.catalogue import NormSpec, parse_norm
from normstab.norms.foreign import recognise, with_mixin

__all__ = ["Replacement", "replace_norms_"]

Rules = Mapping[str, str | NormSpec | None]

REPLACED_BY: dict[type[nn.Module], type[modules.Normalizing]] = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.InstanceNorm1d: modules.InstanceNorm1d,
    nn.InstanceNorm2d: modules.InstanceNorm2d,
    nn.InstanceNorm3d: modules.InstanceNorm3d,
    nn.LayerNorm: modules.LayerNorm,
    nn.GroupNorm: modules.GroupNorm,
    nn.RMSNorm: modules.RMSNorm,
}


@dataclass(frozen=True)
class Replacement:
    """What `replace_norms_` did: the norm of each layer it replaced, and why it left each other one."""

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {norm}" for name, norm in self.replaced.items()]
        return "\n".join(lines + [f"{name}: left, {reason}" for name, reason in self.left.items()])


def replace_norms_(model: nn.Module, to: str | NormSpec | Rules, *, norm_constant: float = 1.0) -> Replacement:
    """Give the normalization layers of `model` the norm `to`, in place; return what was replaced and what left.

    `to` is a norm, or rules {name: norm}: the exact dotted name of a layer wins, then the first "re:" pattern
    that matches the whole name, then "_default"; None leaves a layer as it is. Values are untouched:
    the running statistics of a trained l2 net still hold variances, which another norm's evaluation would
    take for scales, so train on, or pass data with momentum None, before evaluating.

    Raises NormstabError for an unknown norm, and for an exact name or a pattern that meets no such layer.
    """
    rules: Rules = to if isinstance(to, Mapping) else {"_default": to}
    norms = {rule: None if norm is None else parse_norm(norm) for rule, norm in rules.items()}
    layers = {name: layer for name, layer in model.named_modules() if is_norm(layer)}
    check_rules(norms, layers)
    result = Replacement()
    for name, layer in layers.items():
        rule = matching_rule(name, norms)
        spec = None if rule is None else norms[rule]
        if spec is None:
            result.left[name] = "no rule names it" if rule is None else f"rule {rule!r} says so"
        elif reason := replace_layer_(layer, spec, norm_constant):
            result.left[name] = reason
        else:
            result.replaced[name] = str(spec)
    return result


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is one of torch's norms or ours, or says in its class's name that it is a norm."""
    return isinstance(layer, (modules.Normalizing, nn.SyncBatchNorm, *REPLACED_BY)) or (
        "Norm" in type(layer).__name__ and not any(True for _ in layer.children())
    )


def check_rules(norms: Mapping[str, NormSpec | None], layers: Mapping[str, nn.Module]) -> None:
    """Raise for a rule that meets no layer: it is a misspelling."""
    for rule in norms:
        if rule == "_default":
            continue
        if rule.startswith("re:"):
            pattern = compiled(rule)
            if not any(pattern.fullmatch(name) for name in layers):
                raise NormstabError(f"rule {rule!r} matches no normalization layer ({', '.join(layers) or 'none'})")
        elif rule not in layers:
            raise NormstabError(
                f"rule {rule!r} names no normalization layer{near(rule, layers)} ({', '.join(layers) or 'none'})"
            )


def compiled(rule: str) -> re.Pattern[str]:
    """Return the pattern of a "re:" rule, or raise."""
    try:
        return re.compile(rule.removeprefix("re:"))
    except re.error as problem:
        raise NormstabError(f"rule {rule!r}: not a regular expression: {problem}") from None


def matching_rule(name: str, norms: Mapping[str, NormSpec | None]) -> str | None:
    """Return the rule for the layer `name`: exact, then the first pattern, then the default."""
    if name in norms:
        return name
    for rule in norms:
        if rule.startswith("re:") and compiled(rule).fullmatch(name):
            return rule
    return "_default" if "_default" in norms else None


def replace_layer_(layer: nn.Module, spec: NormSpec, norm_constant: float) -> str | None:
    """Give one layer the norm, or return why it is left as it is."""
    factor = norm_constant if spec.has_constant else 1.0
    if not isinstance(layer, modules.Normalizing):
        if isinstance(layer, nn.SyncBatchNorm):
            return "its statistics are shared between processes"
        if any(parameter.is_meta for parameter in layer.parameters()):
            return "its parameters are on the meta device"
        ours = REPLACED_BY.get(type(layer))
        if ours is None:
            found = recognise(layer)
            if isinstance(found, str):
                return found
            ours = with_mixin(found, type(layer))
        layer.__class__ = ours
    assert isinstance(layer, modules.Normalizing)
    layer.set_norm(spec, factor)
    return None
