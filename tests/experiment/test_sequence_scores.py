"""chrF and greedy decoding against numbers worked out by hand, and against an oracle written from the formula."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from normstab.experiment.data.token_sources import END
from normstab.experiment.training.cell_arithmetic import Simulated
from normstab.experiment.training.sequence_scores import chrf, decoded


def test_chrf_of_one_short_pair_is_what_the_formula_gives_by_hand() -> None:
    # wanted abc, found abd: 1-grams 2 of 3, 2-grams 1 of 2, 3-grams 0 of 1 on both sides; no longer ones.
    # chrP = chrR = (2/3 + 1/2 + 0) / 3 = 7/18, and so is their weighted mean.
    assert chrf([[3, 4, 5]], [[3, 4, 6]]) == pytest.approx(7 / 18, rel=1e-15)


def test_chrf_weighs_recall_nine_times() -> None:
    # wanted abcd, found ab: chrP = (1 + 1 + 0 + 0) / 4 = 1/2 (lengths 3 and 4 are wanted, none is found);
    # chrR = (2/4 + 1/3 + 0 + 0) / 4 = 5/24. chrF3 = 10 P R / (9 P + R) = (50/48) / (108/24 + 5/24) = 25/113.
    assert chrf([[3, 4, 5, 6]], [[3, 4]]) == pytest.approx(25 / 113, rel=1e-15)


def test_repeated_grams_count_as_often_as_both_have_them() -> None:
    # wanted aab, found aaa: 1-grams 2 of 3, 2-grams aa once of 2, 3-grams none.
    assert chrf([[3, 3, 4]], [[3, 3, 3]]) == pytest.approx((Fraction(2, 3) + Fraction(1, 2)) / 3, rel=1e-15)


@pytest.mark.parametrize(("wanted", "found", "score"), [([3, 4], [3, 4], 1.0), ([3], [4], 0.0), ([3], [], 0.0)])
def test_chrf_is_one_of_equal_sequences_and_zero_of_those_that_share_nothing(
    wanted: list[int], found: list[int], score: float
) -> None:
    assert chrf([wanted], [found]) == score


SEQUENCES = st.lists(st.tuples(*[st.lists(st.integers(3, 5), min_size=1, max_size=9)] * 2), min_size=1, max_size=4)


@given(SEQUENCES)
def test_chrf_equals_the_formula_in_exact_fractions(pairs: list[tuple[list[int], list[int]]]) -> None:
    precisions, recalls = [], []
    for n in range(1, 7):
        shared = total_wanted = total_found = 0
        for wanted, found in pairs:
            left = ["-".join(map(str, wanted[i : i + n])) for i in range(len(wanted) - n + 1)]
            right = ["-".join(map(str, found[i : i + n])) for i in range(len(found) - n + 1)]
            total_wanted, total_found = total_wanted + len(left), total_found + len(right)
            for gram in right:
                if gram in left:
                    left.remove(gram)
                    shared += 1
        if total_wanted or total_found:
            precisions.append(Fraction(shared, total_found) if total_found else Fraction(0))
            recalls.append(Fraction(shared, total_wanted) if total_wanted else Fraction(0))
    p, r = sum(precisions, Fraction(0)) / len(precisions), sum(recalls, Fraction(0)) / len(recalls)
    expected = 10 * p * r / (9 * p + r) if p + r else Fraction(0)
    assert math.isclose(chrf([a for a, _ in pairs], [b for _, b in pairs]), float(expected), rel_tol=1e-12)


class Counting(nn.Module):
    """Writes 3, 4, 5 ... and ends before the first token that the source names; NaN where the source is 99."""

    def forward(self, source_N1: Tensor, before_NT: Tensor) -> Tensor:
        following = before_NT[:, -1].clamp_min(2) + 1
        is_last = following >= source_N1[:, 0]
        logits = torch.nn.functional.one_hot(torch.where(is_last, END, following), 20).float()
        logits[source_N1[:, 0] == 99, 7] = math.nan
        return logits[:, None].expand(-1, before_NT.shape[1], -1)


def test_greedy_decoding_writes_until_the_end_or_as_much_as_there_is_room_for() -> None:
    source = torch.tensor([[6], [3], [15], [99]])
    found = decoded(Counting(), source, 5, Simulated())
    assert found == [[3, 4, 5], [], [3, 4, 5, 6, 7], [7, 7, 7, 7, 7]]
