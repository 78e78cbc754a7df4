"""How many sets a promotion tries, by the number n of candidates and k of planted members: about k log n.

Nothing is trained or timed: the oracle knows what was planted, in 200 random places, and the ranking knows nothing.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from normstab.search.minimal_set import minimal_set

PLACES = 200


@dataclass(frozen=True)
class Growth:
    """Sets tried among `n` candidates of which `k` are needed: the mean and the most over the places."""

    n: int
    k: int
    mean: float
    most: int


def growth(sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256), members: tuple[int, ...] = (1, 2, 3)) -> list[Growth]:
    """Return a row for every n and k."""
    rows = []
    for k in members:
        for n in sizes:
            places = random.Random(f"{n} {k}")
            names = tuple(map(str, range(n)))
            asked = [_asked(names, set(places.sample(names, k))) for _ in range(PLACES)]
            rows.append(Growth(n, k, sum(asked) / len(asked), max(asked)))
    return rows


def _asked(names: tuple[str, ...], planted: set[str]) -> int:
    """Return how many sets are tried until exactly the planted one is found and shown to be minimal."""
    found = minimal_set(names, lambda kept: planted <= set(kept))
    assert set(found.members or ()) == planted and found.is_minimal
    return len(found.asked)


def main() -> None:
    """Print the table."""
    print("| k | n | sets tried, mean | most | mean / (k log2 n) | all subsets |")
    print("| - | - | ---------------- | ---- | ----------------- | ----------- |")
    for row in growth():
        ratio = row.mean / (row.k * math.log2(row.n))
        print(f"| {row.k} | {row.n} | {row.mean:.1f} | {row.most} | {ratio:.2f} | 2^{row.n} |")


if __name__ == "__main__":
    main()
