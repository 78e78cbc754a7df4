"""What must stay wide, and how far from the bound: asks for cells or passes, judges them, and asks again."""

from normstab.search.divergence import CellDivergence, Divergence, SiteDifference, diff, diff_runs
from normstab.search.error_growth import Growth, error_growth
from normstab.search.format_map import Frontier, Grid, frontier
from normstab.search.measured_bounds import Bounds, SiteBound, bounds
from normstab.search.promotion import Promotion, Search, promote

__all__ = [
    "Bounds",
    "CellDivergence",
    "Divergence",
    "Frontier",
    "Grid",
    "Growth",
    "Promotion",
    "Search",
    "SiteBound",
    "SiteDifference",
    "bounds",
    "diff",
    "diff_runs",
    "error_growth",
    "frontier",
    "promote",
]
