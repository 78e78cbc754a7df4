"""What must stay wide, and how far from the bound: asks for cells or passes, judges them, and asks again."""

from normstab.search.divergence import Divergence, SiteDifference, diff
from normstab.search.error_growth import Growth, error_growth
from normstab.search.measured_bounds import Bounds, SiteBound, bounds
from normstab.search.promotion import Promotion, Search, promote

__all__ = [
    "Bounds",
    "Divergence",
    "Growth",
    "Promotion",
    "Search",
    "SiteBound",
    "SiteDifference",
    "bounds",
    "diff",
    "error_growth",
    "promote",
]
