"""What must stay wide: asks for cells, judges them, and asks again."""

from normstab.search.promotion import Promotion, Search, promote

__all__ = ["Promotion", "Search", "promote"]
