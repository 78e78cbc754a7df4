"""Whole sequences: what a network writes by itself, token after token, and how near that is to what was wanted.

Greedy decoding in the cell's arithmetic; scores are of symbols, which are phonemes here and no characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normstab.experiment.data.token_sources import BEGIN, END, IGNORED
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.records.cell_record import LanguageRecord
from normstab.experiment.training.cell_arithmetic import Simulated

__all__ = ["chrf", "decoded", "language_record"]

ORDERS = 6
RECALL_WEIGHT = 3.0
"""n-grams up to this length, and beta. Source: Popovic 2015, chrF, section 2: n = 6, and beta = 3 agrees best."""
BATCH = 256

Symbols = Sequence[int]


def language_record(
    model: nn.Module, dataset: TokenDataset, simulated: Simulated, *, writes: bool = True
) -> LanguageRecord:
    """Return the share of the most frequent target and, of pairs, the scores of what the network writes by itself.

    One that is inf or NaN writes nothing.
    """
    with simulated.paused():
        targets = dataset.test_y[dataset.test_y != IGNORED]
        chance = int(targets.bincount().max()) / len(targets)
    if dataset.kind != "pairs" or not writes:
        return LanguageRecord(dataset.kind, chance)
    wanted = [_until_end(row) for row in dataset.test_y.tolist()]
    found: list[list[int]] = []
    model.eval()
    with torch.no_grad():
        for (source, _), _y in dataset.test_batches(BATCH):
            found += decoded(model, source, dataset.test_y.shape[1], simulated)
    model.train()
    words = sum(a == b for a, b in zip(wanted, found, strict=True)) / len(wanted)
    return LanguageRecord(dataset.kind, chance, words, chrf(wanted, found))


def decoded(model: nn.Module, source_NS: Tensor, most: int, simulated: Simulated) -> list[list[int]]:
    """Return the tokens that `model` writes for each source, the likeliest at each place, up to END or `most` of them.

    A NaN logit counts as the greatest.
    """
    with simulated.paused():
        written = torch.full((len(source_NS), 1), BEGIN, device=source_NS.device)
        has_ended = torch.zeros(len(source_NS), dtype=torch.bool, device=source_NS.device)
    for _ in range(most):
        logits = model(source_NS, written)
        with simulated.paused():
            best = logits[:, -1].argmax(1).masked_fill(has_ended, END)
            written = torch.cat([written, best[:, None]], dim=1)
            has_ended |= best == END
            if bool(has_ended.all()):
                break
    return [_until_end(row[1:]) for row in written.tolist()]


def _until_end(row: Symbols) -> list[int]:
    """Return the symbols before END, or before the padding where there is none."""
    ends = [place for place, token in enumerate(row) if token in (END, IGNORED)]
    return list(row[: ends[0]] if ends else row)


def chrf(wanted: Sequence[Symbols], found: Sequence[Symbols]) -> float:
    """Return chrF3 of all sequences together, between 0 and 1.

    chrP and chrR are the means over n of the shares of the found (wanted) n-grams that are in the other sequence too;
    chrF = (1 + b^2) chrP chrR / (b^2 chrP + chrR). A length that no sequence on either side has is left out.
    Source: Popovic 2015, equation 1.
    """
    precisions, recalls = [], []
    for n in range(1, ORDERS + 1):
        pairs = [(_grams(a, n), _grams(b, n)) for a, b in zip(wanted, found, strict=True)]
        shared = sum((a & b).total() for a, b in pairs)
        in_wanted, in_found = (sum(pair[side].total() for pair in pairs) for side in (0, 1))
        if in_wanted or in_found:
            precisions.append(shared / in_found if in_found else 0.0)
            recalls.append(shared / in_wanted if in_wanted else 0.0)
    if not any(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    weight = RECALL_WEIGHT**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _grams(symbols: Symbols, n: int) -> Counter[tuple[int, ...]]:
    """Return how often each n-gram occurs."""
    return Counter(tuple(symbols[start : start + n]) for start in range(len(symbols) - n + 1))
