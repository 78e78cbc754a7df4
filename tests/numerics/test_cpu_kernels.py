"""The rounding kernels of the CPU have the bits and the counters of the readable reference."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from normstab import FORMATS, parse_format
from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu import cpu_tensors as cpu
from normstab.numerics.kernels.cpu import openmp
from normstab.numerics.kernels.cpu import threads as threads_module
from normstab.numerics.kernels.cpu.cpu_round import round32_chunk
from normstab.numerics.kernels.cpu.threads import SERIAL_BELOW, chunks, run_chunks
from normstab.numerics.kernels.format_table import PLAN, plan
from normstab.numerics.kernels.shortcut_table import GENERIC, LANE32
from normstab.numerics.ledger import Row
from normstab.numerics.philox import Draw
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.reference import contains, holds
from tests.numerics.kernel_oracle import (
    ALL_FORMATS,
    ALL_ROUNDINGS,
    DRAW,
    DTYPES,
    bits_of,
    by_kernel,
    by_reference,
    call_of,
    contents,
    layouts,
    patterns,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL_FORMATS)
def test_rounding_equals_the_reference_in_every_mode(name, dtype):
    format = ALL_FORMATS[name]
    if not (holds(dtype, format) or contains(format, dtype)):
        pytest.skip(f"{dtype} cannot hold {name}")
    bits = patterns(dtype, 2500, seed=1)
    for rounding in ALL_ROUNDINGS:
        for x in (bits, torch.where(torch.isfinite(bits), bits, 1.0)):
            expected, expected_row = by_reference(x, format, rounding)
            found, row = by_kernel(x, format, rounding)
            assert torch.equal(bits_of(found), bits_of(expected)), rounding
            assert contents(row) == contents(expected_row), rounding
            uncounted = torch.empty_like(x)
            cpu.round_into(x, uncounted, call_of(format, rounding))
            assert torch.equal(bits_of(uncounted), bits_of(expected)), rounding


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3fn", "q7.8:wrap"])
def test_counters_do_not_depend_on_the_histogram(name):
    x = patterns(torch.float32, 3000, seed=2)
    for rounding in ALL_ROUNDINGS:
        _, expected = by_reference(x, ALL_FORMATS[name], rounding, histogram=False)
        _, row = by_kernel(x, ALL_FORMATS[name], rounding, histogram=False)
        assert contents(row) == contents(expected), rounding


def test_inexact_is_counted_only_on_request():
    row = Row(with_histogram=False)
    x = torch.full((10,), 0.1)
    cpu.round_into(x, torch.empty_like(x), Call(FORMATS["fp16"], row=row))
    assert row.counts.tolist() == [10] + [0] * 9


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3fn", "e6m9", "tf32"])
def test_shortcuts_equal_the_generic_kernel_over_all_exponents(name):
    """By the million: a shortcut and the generic code share nothing but the format."""
    bits = np.random.default_rng(3).integers(0, 2**32, 2**20, dtype=np.uint32)
    for rounding in (
        Rounding(),
        Rounding("stochastic", 16),
        Rounding("stochastic", 5),
        Rounding("up"),
        Rounding("to-odd"),
    ):
        table = plan(FORMATS.get(name) or parse_format(name), rounding, LANE32)
        generic, quick = np.empty_like(bits), torch.empty(len(bits))
        draw = DRAW if rounding.is_stochastic else Draw(0, 0)
        word, step = (int(np.uint64(w).astype(np.int64)) for w in (draw.word, draw.step))
        counts = np.empty(12, np.int64)
        place = bits.ctypes.data, generic.ctypes.data
        round32_chunk(*place, 2, len(bits), table, counts.ctypes.data, word, step, draw.first_index)
        x = torch.from_numpy(bits.view(np.float32))
        cpu.round_into(x, quick, call_of(parse_format(name), rounding, draw=draw))
        assert np.array_equal(quick.numpy().view(np.uint32), generic), rounding


def test_the_common_formats_have_shortcuts():
    style = PLAN.index("style")
    for name in ("fp16", "bf16", "tf32", "e4m3fn", "e5m2"):
        for rounding in (Rounding(), Rounding("stochastic", 16)):
            assert plan(FORMATS[name], rounding, LANE32)[style] != GENERIC, (name, rounding)


@pytest.mark.parametrize("first", [0, 1, 2**31 - 3, 2**33 + 5])
@pytest.mark.parametrize("bits", [3, 16, 32])
def test_random_bits_depend_on_the_index_alone(first, bits):
    x = torch.randn(5000)
    format, rounding = FORMATS["fp16"], Rounding("stochastic", bits)
    whole, _ = by_reference(x, format, rounding, draw=Draw(11, 12, first))
    found, _ = by_kernel(x, format, rounding, draw=Draw(11, 12, first))
    part, _ = by_kernel(x[1234:], format, rounding, draw=Draw(11, 12, first + 1234))
    assert torch.equal(found, whole)
    assert torch.equal(part, whole[1234:])


@pytest.fixture
def threads():
    """Call it to set torch's threads; restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("text", ["nearest", "up", "stochastic"])
@pytest.mark.parametrize("name", ["fp16", "fp64", "q7.8"])
def test_bits_and_counters_do_not_depend_on_threads(name, text, threads):
    dtype = torch.float64 if name == "fp64" else torch.float32
    x = patterns(dtype, SERIAL_BELOW + 77, seed=4)
    results = []
    for n in (1, 2, 3):
        threads(n)
        found, row = by_kernel(x, ALL_FORMATS[name], Rounding.parse(text), histogram=False)
        uncounted = torch.empty_like(x)
        cpu.round_into(x, uncounted, call_of(ALL_FORMATS[name], Rounding.parse(text)))
        product = cpu.pointwise("mul", (x, x), call_of(ALL_FORMATS[name], Rounding.parse(text)), dtype, None)
        results.append((bits_of(found).numpy().tobytes(), bits_of(uncounted).numpy().tobytes(), contents(row)))
        if (name, text) == ("fp64", "up"):
            assert product is None  # of operations, directed roundings to 53 bits are the readable code's alone
        else:
            results[-1] += (bits_of(product).numpy().tobytes(),)
    assert results[0] == results[1] == results[2]


def test_chunks_cover_everything_once_at_starts_that_share_no_random_block(threads):
    threads(3)
    for n in (1, SERIAL_BELOW - 1, SERIAL_BELOW, SERIAL_BELOW + 1, 10**6 + 1):
        pieces = chunks(n)
        assert [start for start, _ in pieces[1:]] == [start + size for start, size in pieces[:-1]]
        assert pieces[0][0] == 0 and sum(size for _, size in pieces) == n
        assert all(start % 1024 == 0 for start, _ in pieces)


@pytest.fixture(params=["torch's", "ours"])
def whose(request, monkeypatch):
    """The threads of torch's runtime, and our own that serve where it is not found."""
    if request.param == "ours":
        monkeypatch.setattr(openmp, "team", lambda: None)
    elif openmp.team() is None:
        pytest.skip("torch's runtime is not to be found here")
    return request.param


def test_an_error_in_a_thread_is_raised_to_the_caller(whose):
    def work(i):
        if i == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_chunks(work, 3)


def test_every_chunk_is_computed_once(whose):
    done = []
    run_chunks(done.append, 7)
    assert sorted(done) == list(range(7))


def test_threads_that_flush_subnormals_do_not_flush_ours(whose, threads):
    threads(2)
    found, both = [], threading.Barrier(2, timeout=60)

    def work(i):
        both.wait()  # one thread cannot do it all
        found.append((threading.get_ident(), openmp.flushes_subnormals()))

    def begin():
        if torch.set_flush_denormal(True):
            threads_module._team.cache_clear()
            run_chunks(lambda i: None, 2)  # the team of this very thread is born here
            torch.set_flush_denormal(False)
            run_chunks(work, 2)
        else:
            found.append(None)

    beginner = threading.Thread(target=begin)
    beginner.start()
    beginner.join()
    if found == [None]:
        pytest.skip("the processor does not flush subnormals")
    assert len({thread for thread, _ in found}) == 2
    assert not any(flushes for _, flushes in found)


FORKED = """
import os, torch, normstab as ns
torch.set_num_threads(2)
x = torch.randn(2**22)
x + x  # torch's threads begin
child = os.fork()
if child == 0:
    ns.cast(x, "fp16")
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_before_any_kernel_ran_does_not_wait_for_its_parents_threads():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


def test_an_interrupt_where_no_work_is_under_way_is_raised_all_the_same():
    def interrupted(region, *_):
        """A runtime in which the signal came before the caller's region began."""

    with pytest.raises(KeyboardInterrupt):
        openmp.run_on_team(interrupted, lambda i: None, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads(threads):
    threads(2)
    x = patterns(torch.float32, 2 * SERIAL_BELOW, seed=5)
    expected, _ = by_kernel(x, FORMATS["fp16"], Rounding(), histogram=False)
    found = torch.empty_like(x)
    child = os.fork()
    if child == 0:
        cpu.round_into(x, found, Call(FORMATS["fp16"]))
        os._exit(0 if found.numpy().tobytes() == expected.numpy().tobytes() else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("rounding", [Rounding(), Rounding("stochastic", 16)], ids=str)
def test_layouts_change_nothing_and_are_kept(layout, rounding):
    x = layouts()[layout]
    expected, expected_row = by_reference(x, FORMATS["fp16"], rounding)
    found, row = by_kernel(x, FORMATS["fp16"], rounding)
    assert torch.equal(bits_of(found), bits_of(expected))
    assert contents(row) == contents(expected_row)
    assert found.stride() == torch.empty_like(x).stride()
    if layout != "expanded":
        in_place = x.clone()
        by_kernel(in_place, FORMATS["fp16"], rounding, out=in_place)
        assert torch.equal(bits_of(in_place), bits_of(expected))


def test_an_overlapping_out_reads_every_element_before_it_is_written():
    memory = torch.randn(3001)
    expected, _ = by_reference(memory[:-1].clone(), FORMATS["bf16"], Rounding())
    by_kernel(memory[:-1], FORMATS["bf16"], Rounding(), out=memory[1:])
    assert torch.equal(memory[1:], expected)


def test_empty_and_zero_dimensional_tensors():
    empty, row = by_kernel(torch.empty(0, 3), FORMATS["fp16"], Rounding())
    assert empty.shape == (0, 3) and contents(row) == contents(Row(with_histogram=True))
    scalar, row = by_kernel(torch.tensor(70000.0), FORMATS["fp16"], Rounding())
    assert scalar.shape == () and scalar.isinf() and row.counts[1] == 1


@pytest.fixture
def flushed():
    """Flush-to-zero and denormals-are-zero, on this thread."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("name", ["fp16", "bf16", "tf32", "e8m1", "e5m2", "e7m23", "q0.24"])
def test_flush_to_zero_changes_no_bit(name, flushed):
    for rounding in ALL_ROUNDINGS:
        x = patterns(torch.float32, 4000, seed=8)
        flushing, flushing_row = by_kernel(x, ALL_FORMATS.get(name) or parse_format(name), rounding)
        product = cpu.pointwise("mul", (x, 0.5), call_of(ALL_FORMATS[name], rounding), torch.float32, None)
        total = cpu.pointwise("add", (x, x.flip(0)), call_of(ALL_FORMATS[name], rounding), torch.float32, None)
        torch.set_flush_denormal(False)
        expected, row = by_kernel(x, ALL_FORMATS[name], rounding)
        halved = cpu.pointwise("mul", (x, 0.5), call_of(ALL_FORMATS[name], rounding), torch.float32, None)
        summed = cpu.pointwise("add", (x, x.flip(0)), call_of(ALL_FORMATS[name], rounding), torch.float32, None)
        torch.set_flush_denormal(True)
        assert flushing.numpy().tobytes() == expected.numpy().tobytes(), rounding
        assert product.numpy().tobytes() == halved.numpy().tobytes(), rounding
        assert total.numpy().tobytes() == summed.numpy().tobytes(), rounding
        assert contents(flushing_row) == contents(row), rounding
