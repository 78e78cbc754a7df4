"""The embedded samples of language as numbers: words beside their phonemes, and a text in windows.

Arrays are numpy's; nothing needs torch. Letters: N sequences, S source tokens, T target tokens.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normstab.errors import NormstabError

__all__ = [
    "BEGIN",
    "END",
    "IGNORED",
    "PAD",
    "TokenSource",
    "by_hash",
    "numbered",
    "padded",
    "read_text",
    "read_words",
]

SAMPLES = Path(__file__).parent / "samples"
WORD_SAMPLE, KJV_SAMPLE = SAMPLES / "cmudict_sample.txt.xz", SAMPLES / "kjv_sample.txt.xz"

PAD, BEGIN, END = 0, 1, 2
"""The tokens beside the symbols of a set of pairs: after a sequence, before a target, and at its end."""
IGNORED = -100
"""The target where there is none; torch's cross entropy leaves it out by default."""

Numbers = NDArray[np.int64]
TEST_WORDS = 2000
TEST_SHARE = 10  # one in ten characters, the last ones
WINDOW = 64


@dataclass(frozen=True)
class TokenSource:
    """Sources N S and targets N T of training and test, padded, and how many tokens either may be.

    `kind`: `pairs`, a source and the target that it is turned into, or `text`, windows and the characters that follow.
    """

    kind: str
    train: tuple[Numbers, Numbers]
    test: tuple[Numbers, Numbers]
    sources: int
    targets: int
    sha256: str


def by_hash(words: Iterable[str]) -> list[str]:
    """Return the words in order of their sha256: a shuffle that is the same everywhere, in any list."""
    return sorted(words, key=lambda word: hashlib.sha256(word.encode()).hexdigest())


def read_words() -> TokenSource:
    """Return 20,000 training and 2000 test words of the CMU dictionary, letters to phonemes, in order of their hash."""
    text = _unpacked(WORD_SAMPLE)
    pairs = {word: phonemes for word, *phonemes in map(str.split, text.splitlines())}
    words = by_hash(pairs)
    letters = numbered(letter for word in words for letter in word)
    phonemes = numbered(phoneme for word in words for phoneme in pairs[word])
    source = padded([[letters[letter] for letter in word] for word in words], PAD)
    target = padded([[*(phonemes[phoneme] for phoneme in pairs[word]), END] for word in words], IGNORED)
    cut = len(words) - TEST_WORDS
    train, test = (source[:cut], target[:cut]), (source[cut:], target[cut:])
    return TokenSource("pairs", train, test, END + 1 + len(letters), END + 1 + len(phonemes), _sha256(text))


def read_text(size: int | None = None) -> TokenSource:
    """Return the text sample in windows of `size` characters side by side, each with the characters that follow.

    The last tenth of the text is the test set; no window reaches over the border.
    """
    text, window = _unpacked(KJV_SAMPLE), WINDOW if size is None else size
    number = {character: index for index, character in enumerate(sorted(set(text)))}
    tokens = np.array([number[character] for character in text], np.int64)
    cut = len(tokens) - len(tokens) // TEST_SHARE
    if window >= len(tokens) - cut:
        raise NormstabError(f"dataset.size {window}: the test text has {len(tokens) - cut} characters")
    train, test = _windows(tokens[:cut], window), _windows(tokens[cut:], window)
    return TokenSource("text", train, test, len(number), len(number), _sha256(text))


def _windows(tokens: Numbers, size: int) -> tuple[Numbers, Numbers]:
    """Return whole windows and the same shifted by one; a rest is left out."""
    count = (len(tokens) - 1) // size
    return tokens[: count * size].reshape(count, size), tokens[1 : count * size + 1].reshape(count, size)


def numbered(symbols: Iterable[str]) -> dict[str, int]:
    """Return the number of each symbol, in order of their names, after the three special tokens."""
    return {symbol: number for number, symbol in enumerate(sorted(set(symbols)), END + 1)}


def padded(sequences: Sequence[Sequence[int]], filler: int) -> Numbers:
    """Return the sequences as rows, filled up at their ends."""
    rows = np.full((len(sequences), max(map(len, sequences))), filler, np.int64)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows


def _unpacked(path: Path) -> str:
    """Return the text of a sample."""
    return lzma.decompress(path.read_bytes()).decode("ascii")


def _sha256(text: str) -> str:
    """Return the hash of a sample as a text, which does not depend on how it was packed."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()
