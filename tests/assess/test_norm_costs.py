"""What a norm costs: counted in the traced program and in what autograd keeps, against counts made by hand."""

import pytest

from normstab.assess.norm_costs import NORMS, norm_cost

# For each element. l2 forward: two sums, x - mean, d d, d / s, gamma y, y + beta; backward: four sums and two
# differences, g y and gamma g and two products with the means, one division by s.
BY_HAND = {"l2": (10, 6, 2, 0, 1), "l1": (12, 5, 2, 2, 0)}


@pytest.mark.parametrize("norm", BY_HAND)
def test_operations_are_those_of_the_formulas(norm: str) -> None:
    found = norm_cost(norm)
    counted = (found.additions, found.products, found.divisions, found.comparisons, found.roots)
    assert counted == BY_HAND[norm]


def test_l1_has_no_square_and_no_root_and_keeps_what_l2_keeps() -> None:
    l2, l1 = norm_cost("l2"), norm_cost("l1")
    assert l1.products == l2.products - 1 and (l2.roots, l1.roots) == (1, 0)
    assert l1.kept_bytes <= l2.kept_bytes < 4.01


@pytest.mark.parametrize("norm", NORMS)
def test_kept_bytes_are_those_of_x_and_of_numbers_of_channels(norm: str) -> None:
    assert 4.0 <= norm_cost(norm).kept_bytes < 4.0 + 4 * 32 / 4096
