"""What must stay wide: asks for cells, judges them, and asks again."""

from normstab.search.promotion import Promotion, promote

__all__ = ["Promotion", "promote"]
