"""SyncBatchNorm simulated in gloo processes: bit for bit one process that forms each batch's sums and joins them."""

import pytest
import torch

from tests.simulation.data_parallel_cases import one_thread
from tests.simulation.norm_of_batches import in_one_process, wide_in_one_process
from tests.simulation.norms_over_ranks_cases import FULL, LAWS, MACHINES, STEPS, WIDE, C, by_torch
from tests.simulation.processes import run_cases

CASES = "tests.simulation.norms_over_ranks_cases"
OTHERS = ["empty_on_one", "empty_on_all", "kinds", "copied", "subclass", "checkpointed"]
OF_FOUR = ["ring", "stochastic"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    names = [*MACHINES, *(f"on_{recipe}" for recipe in WIDE), *(f"law_{law}" for law in LAWS), *OTHERS]
    return run_cases(CASES, names, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run_cases(CASES, [*OF_FOUR, "on_half", "law_fp64"], 4, tmp_path_factory.mktemp("four"))


def check(found, machine, size):
    with one_thread():
        steps, running, ledger = in_one_process(machine, size)
    for rank, of_rank in enumerate(found):
        assert isinstance(of_rank, dict), of_rank
        assert of_rank["unrecognised"] == {} and of_rank["notes"] == [] and of_rank["is_given_back"]
        assert all(map(torch.equal, of_rank["running"], running)), f"rank {rank}"
        for seen, (outputs, d_x, d_gamma, d_beta) in zip(of_rank["steps"], steps, strict=True):
            for found_one, wanted in zip(seen, (outputs[rank], d_x[rank], d_gamma, d_beta), strict=True):
                torch.testing.assert_close(found_one, wanted, rtol=0, atol=0, equal_nan=True)
        assert {site: t for site, t in of_rank["ledger"].items() if site.startswith("0.")} == ledger


@pytest.mark.parametrize("machine", MACHINES)
def test_two_ranks_equal_one_process_bit_for_bit(two, machine):
    check(two[machine], machine, 2)


@pytest.mark.parametrize("machine", OF_FOUR)
def test_four_ranks_one_without_samples_equal_one_process_bit_for_bit(four, machine):
    check(four[machine], machine, 4)


@pytest.mark.nightly
def test_four_ranks_equal_one_process_on_every_machine(tmp_path):
    found = run_cases(CASES, list(MACHINES), 4, tmp_path)
    for machine in MACHINES:
        check(found[machine], machine, 4)


def test_the_join_of_a_norm_is_counted_at_its_own_site(two):
    seen = two["ring"][0]["ledger"]
    for site in ("mean", "dispersion"):
        counts = [seen[f"0.{site}.all_reduce{part}[forward]"].count for part in (".load", ".sum", "")]
        assert counts == [2 * C * STEPS] + [C * STEPS] * 2
    assert "0.product.all_reduce.sum[backward]" in seen and "0.mean.all_reduce.load[backward]" in seen


def test_an_overflowing_sum_of_squares_is_counted_and_stays_where_it_is(two):
    seen = two["overflowing"][0]["ledger"]
    assert seen["0.dispersion.sum[forward]"].overflow > 0
    assert seen["0.dispersion.all_reduce.sum[forward]"].inf_propagated > 0


@pytest.mark.parametrize("recipe", WIDE)
def test_a_wide_norm_joins_float32_sums_and_rounds_once(two, recipe):
    check_wide(two[f"on_{recipe}"], recipe, 2)


def test_four_ranks_of_a_wide_norm_equal_one_process_bit_for_bit(four):
    check_wide(four["on_half"], "half", 4)


def check_wide(found, recipe, size):
    with one_thread():
        outputs, d_x, running = wide_in_one_process(recipe, FULL[size])
    for rank, of_rank in enumerate(found):
        assert isinstance(of_rank, dict), of_rank
        assert of_rank["unrecognised"] == {}
        assert torch.equal(of_rank["found"][0], outputs[rank])
        assert torch.equal(of_rank["found"][1].float(), d_x[rank].float())
        assert all(map(torch.equal, of_rank["running"], found[0]["running"]))
        for seen, wanted in zip(of_rank["running"], running, strict=True):
            if recipe == "amp":  # whose buffers are float32 themselves
                assert torch.equal(seen, wanted)
            else:
                assert torch.equal(seen, wanted.to(of_rank["dtype"]).float())
    sites = [str(site) for site in found[0]["ledger"] if ".all_reduce" in str(site) and "weight" not in str(site)]
    assert any("dispersion.all_reduce.sum" in site for site in sites) == (recipe == "wide_ring"), sites


@pytest.mark.parametrize("law", LAWS)
def test_in_float64_two_ranks_are_torchs_batch_norm_of_the_whole_batch(two, law):
    check_law(two[f"law_{law}"], by_torch(2))


def test_in_float64_four_ranks_are_torchs_batch_norm_of_the_whole_batch(four):
    check_law(four["law_fp64"], by_torch(4))


def check_law(found, wanted):
    for of_rank in found:
        assert isinstance(of_rank, tuple), of_rank
        for seen, want in zip(of_rank[0], wanted, strict=True):
            torch.testing.assert_close(seen, want, rtol=1e-11, atol=1e-11)


def test_a_rank_without_samples_takes_part(two):
    (of_0, _), (of_1, _) = two["empty_on_one"]
    assert all(map(torch.equal, of_0, of_1))
    assert all(x.isfinite().all() for x in of_0)


def test_without_samples_anywhere_nothing_moves(two):
    for shape, weight, mean, var in two["empty_on_all"]:
        assert shape == (0, C, 4) and torch.equal(weight, torch.zeros(C))
        assert torch.equal(mean, torch.zeros(C)) and torch.equal(var, torch.ones(C))


def test_layers_without_parameters_or_statistics_and_with_a_plain_mean(two):
    for i in range(3):
        (x, mean, var, count), (y, *others) = two["kinds"][0][i], two["kinds"][1][i]
        whole = torch.cat([x, y])
        torch.testing.assert_close(whole.mean(0), torch.zeros(C), rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.var(0, unbiased=False), torch.ones(C), rtol=1e-2, atol=0)
        assert count and others[2] == count
        assert (mean is None) == (i == 1) and (mean is None or torch.equal(mean, others[0]))
        assert var is None or torch.equal(var, others[1])


def test_a_copy_made_meanwhile_is_a_network_of_its_own(two):
    for is_bound, output in two["copied"]:
        assert is_bound
        torch.testing.assert_close(output, [2.5 - 5e-4 * 2, 1 - 1e-3, 2.25 - 1e-3], rtol=1e-2, atol=0)


def test_a_subclass_with_a_forward_pass_of_its_own_is_refused_by_name(two):
    assert all(
        "module '1': WithActivation is a SyncBatchNorm with a forward pass of its own" in x for x in two["subclass"]
    )


def test_a_norm_in_a_checkpoint_draws_the_bits_that_it_drew(two):
    for equal, recomputed in two["checkpointed"]:
        assert all(equal) and recomputed > 0
