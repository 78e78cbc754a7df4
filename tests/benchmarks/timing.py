"""Options, samples in turns, and tables of their ratios: what every benchmark shares."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from normstab.numerics.first_calls import FIRST_CALLS

Work = Callable[[], object]
Samples = dict[str, list[float]]


def begin(title: str, *flags: str, turns: int | None = 15) -> argparse.Namespace:
    """Read the options, set the threads, print the heading; `turns` None: each work has a number of its own."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--threads", type=int, default=2)
    if turns is not None:
        parser.add_argument("--turns", type=int, default=turns, help="samples of each work")
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    FIRST_CALLS.end()
    print(f"## {title}, {options.threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    return options


def in_turns(works: dict[str, Work], turns: int) -> Samples:
    """Return the seconds of each work, one of each per turn after one warm-up: what disturbs one disturbs all."""
    for work in works.values():
        work()
    taken: Samples = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return taken


def print_table(
    title: str, columns: dict[str, Samples], yardstick: str, to_reach: dict[str, str] | None = None
) -> None:
    """Print a Markdown table: a row per work, a column per case, ratios of medians to the yardstick (of minima)."""
    names = list(dict.fromkeys(name for taken in columns.values() for name in taken))
    print_heads(title, [*columns, *(["to reach"] if to_reach else [])])
    for name in names:
        cells = [cell(taken[name], taken[yardstick], name == yardstick) for taken in columns.values()]
        print_row(name, cells + ([to_reach.get(name, "")] if to_reach else []))


def print_heads(title: str, heads: list[str]) -> None:
    """Print the title of a Markdown table and its first lines."""
    print(f"\n### {title}\n\n| work | " + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|", flush=True)


def print_row(name: str, cells: list[str]) -> None:
    """Print a row of a Markdown table."""
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def progress(text: str) -> None:
    """Say on stderr what is measured now."""
    print(f"... {text}", file=sys.stderr, flush=True)


def cell(taken: list[float], base: list[float], is_yardstick: bool) -> str:
    """Return the time of the yardstick, the ratio to it of anything else."""
    median, least = statistics.median(taken), min(taken)
    if is_yardstick:
        return f"{1e3 * median:.2f} ms" if median >= 1e-3 else f"{1e6 * median:.1f} us"
    return f"{median / statistics.median(base):.2f}x ({least / min(base):.2f}x)"
