"""The order of sites: norm layers in the network's order, and within each the operations as they are computed.

Records keep sites by name; a reader wants to see a value go through a layer. Knows names only.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from normstab.numerics.ledger import DIRECTIONS, Site
from normstab.numerics.rules import plain_operation

__all__ = ["OPERATIONS", "in_order", "place_of"]

OPERATIONS = (
    "input", "gamma", "beta", "mean.sum", "mean.div", "centre", "abs", "square", "power", "max", "topk",
    "dispersion.sum", "dispersion.div", "variance", "sqrt", "root", "constant", "eps", "reciprocal", "divide",
    "scale", "shift", "running_mean", "running_var",
)  # fmt: skip
"""The forward operations of a norm layer in their order. Source: normstab's contract, "Norm layers"."""


def operation_in(site: str, layer: str) -> str:
    """Return what follows the layer's name in a site, without the direction: `dispersion.sum.load`."""
    return site.removeprefix(f"{layer}.").partition("[")[0]


def place_of(site: str, layers: Container[str]) -> tuple[str, str]:
    """Return the module and the operation of a site; of a site in a norm layer, that layer and what follows it."""
    name = site.partition("[")[0]
    if layer := _layer_of(site, layers):
        return layer, name.removeprefix(f"{layer}.")
    module, _, operation = plain_operation(name).rpartition(".")
    return module, operation


def in_order(sites: Iterable[str], layers: Sequence[str]) -> list[str]:
    """Return the sites forward first, then layer by layer (`layers` are the norm layers), then as computed.

    A suffix (`.load`, `.const`) stands before its operation. Sites outside norm layers follow by name.
    """
    places = {layer: number for number, layer in enumerate(layers)}
    ranks = {operation: rank for rank, operation in enumerate(OPERATIONS)}

    def place(site: str) -> tuple[int, int, int, int, str]:
        direction = DIRECTIONS.index(Site.parse(site).direction)
        layer = _layer_of(site, places)
        operation = operation_in(site, layer) if layer else ""
        plain = operation.removesuffix(".load").removesuffix(".const")
        rank = ranks.get(plain, len(ranks))
        return direction, places.get(layer, len(places)), rank, operation == plain, site

    return sorted(sites, key=place)


def _layer_of(site: str, layers: Container[str]) -> str:
    """Return the norm layer a site lies in, or an empty string."""
    name = site.partition("[")[0]
    while name:
        if name in layers:
            return name
        name = name.rpartition(".")[0]
    return ""
