"""The search for a smallest set, against exhaustive search over subsets, planted sets and a budget."""

import math
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from normstab.search.minimal_set import OutOfBudget, minimal_set
from tests.benchmarks.bench_promotions import growth

NAMES = tuple("abcdefghijkl")


def smallest_by_exhaustion(names, suffices):
    """Return every sufficient subset of which no proper subset suffices."""
    sufficient = [set(s) for size in range(len(names) + 1) for s in combinations(names, size) if suffices(s)]
    return [s for s in sufficient if not any(other < s for other in sufficient)]


@given(st.sets(st.sampled_from(NAMES), max_size=4), st.permutations(NAMES))
@settings(deadline=None, max_examples=50)
def test_a_planted_set_is_found_whatever_the_ranking(planted, ranking):
    found = minimal_set(ranking, lambda members: planted <= set(members))
    assert set(found.members) == planted
    assert found.is_minimal
    assert found.is_complete


@given(st.lists(st.sets(st.sampled_from(NAMES[:7]), min_size=1, max_size=4), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_of_several_sets_that_do_one_of_the_smallest_by_inclusion_is_found(planted):
    def suffices(members):
        return any(one <= set(members) for one in planted)

    found = minimal_set(NAMES[:7], suffices)
    assert set(found.members) in smallest_by_exhaustion(NAMES[:7], suffices)


@given(st.dictionaries(st.frozensets(st.sampled_from(NAMES[:5])), st.booleans(), max_size=32))
@settings(deadline=None, max_examples=50)
def test_without_monotony_the_answer_suffices_and_loses_that_with_any_member(table):
    def suffices(members):
        return table.get(frozenset(members), False)

    found = minimal_set(NAMES[:5], suffices)
    if found.members is not None:
        assert suffices(found.members)
        assert found.is_minimal
        assert not any(suffices(set(found.members) - {name}) for name in found.members)


def test_no_set_is_asked_about_twice_and_the_count_grows_like_k_log_n():
    for n in (8, 64, 512):
        names = [str(i) for i in range(n)]
        planted = {names[n // 3], names[2 * n // 3]}
        asked = []

        def suffices(members, asked=asked, planted=planted):
            asked.append(members)
            return planted <= set(members)

        found = minimal_set(names, suffices)
        assert set(found.members) == planted
        assert len(asked) == len(set(asked)) == len(found.asked)
        assert len(asked) <= 2 * 2 * n.bit_length() + n.bit_length() + 6


def test_the_table_of_growth_stays_below_its_bound_wherever_the_planted_members_are():
    """At most 2 k log2(n / k) + 2 k questions of QuickXplain, log2 n prefixes, and k + 3 to show that it is minimal."""
    for row in growth():
        bound = 2 * row.k * math.log2(row.n / row.k) + math.log2(row.n) + 4 * row.k + 3
        assert 0 < row.mean <= row.most <= bound, row


def test_with_the_true_ranking_a_set_of_k_costs_few_questions_whatever_n():
    found = minimal_set([str(i) for i in range(1000)], lambda members: {"0", "1"} <= set(members))
    assert found.members == ("0", "1")
    assert len(found.asked) <= 6


def test_where_nothing_suffices_the_answer_is_none():
    found = minimal_set(NAMES, lambda members: False)
    assert found.members is None
    assert found.is_complete


def test_a_budget_ends_the_search_with_the_best_set_so_far():
    asked = []

    def suffices(members):
        if len(asked) == 7:
            raise OutOfBudget
        asked.append(members)
        return {"c", "f"} <= set(members)

    found = minimal_set(NAMES, suffices)
    assert not found.is_complete
    assert not found.is_minimal
    assert {"c", "f"} <= set(found.members)
