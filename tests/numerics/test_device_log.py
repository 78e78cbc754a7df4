"""Counts that wait in a device's memory: whoever looks finds them, wherever they were counted and in whatever order.

A CPU stands for the device: what is tested is when numbers are taken in.
"""

import copy
import pickle

import pytest
import torch

import normstab as ns
from normstab.numerics.kernels.cuda import device_log
from normstab.numerics.kernels.cuda.device_log import ANSWERS_AT, COUNTED, LOSSES_AT, DeviceLog
from normstab.numerics.ledger import COUNTERS, Ledger, Site
from normstab.numerics.tallies.counter_row import HISTOGRAM_BINS

SITE = Site("bn", "square")


@pytest.fixture
def log():
    return DeviceLog(torch.device("cpu"), None)


def launch(log, row, counter, n, *, stamp, step=0):
    """Count as a kernel does."""
    cells = log.borrow()
    cells.counts[0, COUNTERS.index(counter)] = n
    log.take_back(cells, lambda found, repeats: row.add(found[0, 0, :10], 0.0, 1.0, stamp=stamp, step=step), [row])


LOOKS = {
    "key": lambda ledger: ledger[SITE],
    "name": lambda ledger: ledger["bn"],
    "copy": lambda ledger: copy.deepcopy(ledger)[SITE],
    "pickle": lambda ledger: pickle.loads(pickle.dumps(ledger))[SITE],
    "total": lambda ledger: ledger.total(),
    "drain": lambda ledger: ledger.drain()[SITE],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_who_looks_finds_what_was_counted(look, log):
    ledger = Ledger()
    row = ledger.row(SITE)
    for stamp in (1, 2):
        launch(log, row, "overflow", stamp, stamp=stamp)
    assert row._counts.sum() == 0 and row.pending == {log}
    assert look(ledger).overflow == 3
    assert not row.pending and ledger.first("overflow").site == SITE


def test_the_first_offence_is_the_earliest_whoever_is_read_first(log):
    ledger = Ledger()
    row = ledger.row(SITE)
    launch(log, row, "overflow", 1, stamp=5, step=2)
    row.add(row_counts(overflow=1), 0.0, 1.0, stamp=7, step=3)  # a CPU counts here and now
    assert row.first_of("overflow") == (5, 2) and row.counts[1] == 2


def row_counts(**found):
    counts = torch.zeros(10, dtype=torch.int64)
    for name, n in found.items():
        counts[COUNTERS.index(name)] = n
    return counts.numpy()


def test_a_drain_leaves_nothing_for_the_next_one(log):
    ledger = Ledger(histogram=True)
    row = ledger.row(SITE)
    launch(log, row, "underflow", 4, stamp=1)
    log.add_bins(row, torch.ones(HISTOGRAM_BINS, dtype=torch.int64))
    assert ledger.drain()[SITE].underflow == 4
    again = ledger[SITE]
    assert again.underflow == 0 and again.histogram.finite_nonzero == 0 and ledger.first_step(SITE, "underflow") == 0


def test_a_site_that_may_never_be_comes_into_being_with_its_first_count(log):
    ledger = Ledger()
    for n in (0, 3):
        cells = log.borrow()
        cells.counts[0, 0] = n

        def take(found, repeats):
            if found[0, 0, 0]:
                ledger.row(SITE).lose("lost_updates", int(found[0, 0, 0]), stamp=1, step=0)

        log.take_back(cells, take, [ledger])
        assert (SITE in ledger) == (n > 0)
    assert ledger[SITE].lost_updates == 3


def test_launches_that_fill_the_memory_are_taken_in_without_a_reader(log, monkeypatch):
    monkeypatch.setattr(device_log, "LAUNCHES", 4)
    row = ns.Ledger().row(SITE)
    for stamp in range(11):
        launch(log, row, "overflow", 1, stamp=stamp)
        log.take_back(log.borrow(2), lambda found, repeats: None, [])
    assert len(log._stretches) == 1 and row._counts[1] >= 8
    assert row.counts[1] == 11 and row.first_of("overflow") == (0, 0)


def test_a_launch_under_way_is_neither_lost_nor_counted_twice(log):
    row = ns.Ledger().row(SITE)
    under_way = log.borrow()
    launch(log, row, "overflow", 1, stamp=2)
    assert row.counts[1] == 1
    under_way.counts[0, 1] = 5
    log.take_back(under_way, lambda found, repeats: row.add(found[0, 0, :10], 0.0, 1.0, stamp=1, step=0), [row])
    assert row.counts[1] == 6 and row.first_of("overflow") == (1, 0)


def test_cells_hold_counters_magnitudes_answers_and_losses():
    assert (ANSWERS_AT, LOSSES_AT, COUNTED) == (14, 16, 18)


@pytest.mark.parametrize("has_counted", [True, False])
def test_ledgers_of_several_processes_join_with_what_is_still_on_their_devices(has_counted, log):
    ledgers = [Ledger(), Ledger()]
    for rank, ledger in enumerate(ledgers):
        launch(log, ledger.row(SITE), "overflow", 1, stamp=1, step=5 - rank)
    joined = Ledger()
    if has_counted:
        launch(log, joined.row(SITE), "overflow", 9, stamp=1)
    joined.become_joined(ledgers)
    assert joined[SITE].overflow == 2 and joined.first("overflow") == (SITE, 4, 1)
