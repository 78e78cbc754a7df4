"""A network simulated under `fully_shard` in gloo processes: the bits that one process gets in their place."""

import pytest
import torch

import normstab as ns
from tests.simulation.data_parallel_cases import SHARDED, in_one_process
from tests.simulation.processes import run_cases

CASES = "tests.simulation.data_parallel_cases"
OTHERS = ["split_afterwards", "split_policy", "split_scaled", "split_sums"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_cases(CASES, [*SHARDED, *OTHERS], 2, tmp_path_factory.mktemp("two"))


def joined_sites(ledger):
    """Return the tallies of what processes do together, of all modules, an all-reduce's as a reduce-scatter's."""
    sums = {}
    for site, tally in ledger.items():
        _, found, part = site.replace("all_reduce", "reduce_scatter").partition("reduce_scatter")
        if found:
            sums[part] = sums.get(part, ns.Ledger().total()) + tally
    return sums


def alone(ledger):
    """Return the tallies of what each process does by itself."""
    return {site: tally for site, tally in ledger.items() if "reduce" not in site}


def check_machine(found, machine, size):
    for rank, of_rank in enumerate(found):
        assert isinstance(of_rank, dict), of_rank
        assert all(map(torch.equal, of_rank["parameters"], found[0]["parameters"])), f"rank {rank} trained others"
        assert all(of_rank[what] == found[0][what] for what in ("ledger", "unrecognised", "notes"))
    parameters, wanted = in_one_process(machine, size, is_split=True)
    assert all(map(torch.equal, parameters, found[0]["parameters"]))
    seen = found[0]["ledger"]
    assert found[0]["unrecognised"] == {}
    assert joined_sites(seen) == joined_sites(wanted)
    mine, of_one = alone(seen), alone(wanted)
    if machine == "split_adamw":  # every process counts its step numbers, of which the oracle has one set
        del mine["(outside).add[optimizer]"], of_one["(outside).add[optimizer]"]
    if machine == "split_no_masters":  # the oracle opens simulations, each of which stores whole parameters rounded
        mine, of_one = ({s: t for s, t in x.items() if not is_stored(s)} for x in (mine, of_one))
    assert mine == of_one


def is_stored(site):
    return site.endswith(("weight[forward]", "bias[forward]"))


@pytest.mark.parametrize("machine", SHARDED)
def test_two_ranks_of_a_sharded_network_equal_one_process_bit_for_bit(two, machine):
    check_machine(two[machine], machine, 2)


@pytest.mark.nightly
def test_two_of_a_batch_of_four_ranks_are_sharded_alike(tmp_path):
    machines = ["split_sgd", "split_adamw"]  # the last layer has two rows for four ranks: two of them hold padding
    found = run_cases(CASES, machines, 4, tmp_path)
    for machine in machines:
        parameters, _ = in_one_process(machine, 4, is_split=True)
        for of_rank in found[machine]:
            assert all(map(torch.equal, of_rank["parameters"], parameters))


def test_a_reduce_scatter_is_counted_at_the_sharded_module(two):
    seen = two["split_ring"][0]["ledger"]
    elements, steps = 16 * 8 + 8, 2
    counts = [seen[f"4.reduce_scatter{part}[backward]"].count for part in (".load", ".div", ".sum", "")]
    assert counts == [2 * elements * steps] * 2 + [elements * steps] * 2


def test_without_masters_sharded_gradients_add_up_in_16_bits_in_whole_and_in_parts(two):
    for in_whole, in_parts in two["split_sums"]:
        assert in_whole == ([2048.0, 2048.0], 8)  # two ranks absorb two gradients of both elements
        assert in_parts == ([2048.0, 2048.0], 4)  # each rank those of its own element
    assert len(two["split_sums"]) == 2


def test_fully_shard_reduces_as_before_after_a_simulation(two):
    assert two["split_afterwards"] == [True, True]


def test_a_policy_that_converts_parameters_is_refused_by_name(two):
    assert all("MixedPrecisionPolicy" in text and "'weight'" in text for text in two["split_policy"])


def test_a_step_is_skipped_by_all_where_one_part_of_a_gradient_is_not_finite(two):
    assert two["split_scaled"] == [([(2.0**15, 1), (2.0**15, 1)], 2)] * 2
