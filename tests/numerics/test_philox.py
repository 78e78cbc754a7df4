"""Random bits: the published vectors, the documented layout, and independence of everything but the key."""

import hashlib
import itertools

import numpy as np
import pytest
import torch

import normstab as ns
from normstab.numerics.philox import Draw, philox, random_fields

# Random123 1.14, kat_vectors, philox4x32-10: counter words, key words, result words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter, key, expected):
    block = counter[0] | counter[1] << 32
    signed = torch.tensor([block - 2**64 if block >= 2**63 else block])
    words = philox(key[0] | key[1] << 32, counter[2] | counter[3] << 32, signed)
    assert tuple(int(word) for word in words) == expected


def test_a_key_is_the_first_bytes_of_blake2b_of_seed_and_site():
    digest = hashlib.blake2b((7).to_bytes(8, "little") + b"bn1.square[forward]").digest()
    assert ns.Key(7, "bn1.square[forward]").word == int.from_bytes(digest[:8], "little")


@pytest.mark.parametrize(("bits", "width"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (32, 32)])
def test_fields_lie_where_the_layout_says(bits, width):
    draw = Draw(ns.Key(3, "layout").word, 5)
    fields = random_fields(draw, torch.arange(64), bits)
    for i in range(64):
        block, j = divmod(i, 128 // width)
        words = philox(draw.word, draw.step, torch.tensor([block]))
        word = int(words[j // (32 // width)])
        field = (word >> (j % (32 // width) * width)) & ((1 << width) - 1)
        assert int(fields[i]) == field >> (width - bits)


def test_a_draw_far_into_a_tensor_continues_the_same_stream():
    draw = Draw(ns.Key(3, "far").word, 0)
    start = 2**33 + 5
    assert torch.equal(
        random_fields(draw._replace(first_index=start), torch.arange(9), 16),
        random_fields(draw, torch.arange(9) + start, 16),
    )


def test_runs_drawn_side_by_side_have_the_fields_of_their_elements():
    numba = pytest.importorskip("numba")
    from normstab.numerics.kernels.cpu.philox_cpu import draw_runs

    @numba.njit
    def drawn(fields, words, key, first, n, stride, width):  # what kernels call has no entry from Python
        draw_runs(fields, words, key, 5, first, len(fields) // n, n, stride, width)

    draw = Draw(ns.Key(3, "runs").word, 5)
    for width, n in itertools.product((8, 16, 32), (1, 3, 4, 8, 9, 16, 49)):
        stride = (n // 16 + 2) * 16  # a whole number of blocks of any width
        for first, runs in ((0, 1), (5, 300 // n + 2), (2**33 + 21, 7)):
            fields, words = np.zeros(runs * n, np.uint32), np.zeros(240, np.uint32)
            drawn(fields, words, np.uint64(draw.word % 2**64), first, n, stride, width)
            indices = (torch.arange(runs)[:, None] * stride + torch.arange(n)).flatten() + first
            expected = random_fields(draw, indices, width).numpy()
            assert (fields >> np.uint32(32 - width) == expected).all()


def test_fields_are_uniform():
    fields = random_fields(ns.Key(11, "uniform").draw, torch.arange(2**18), 8).numpy()
    counts = np.bincount(fields, minlength=256)
    chi_square = float(((counts - 1024.0) ** 2 / 1024).sum())
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)  # five standard deviations of chi-square with 255 degrees


@pytest.mark.parametrize("bad", [-1, 2**64, 1.5])
def test_a_seed_outside_64_bits_is_refused(bad):
    with pytest.raises(ns.NormstabError, match="seed"):
        ns.Key(seed=bad)
