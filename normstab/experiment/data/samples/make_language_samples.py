"""Make the samples of language: `python -m normstab.experiment.data.samples.make_language_samples A B`.

A is the folder of the CMU pronouncing dictionary (`cmudict.dict`), B that of the module engKJV2006eb of Debian's
sword-text-kjv (`nt.bzs`, `nt.bzz`); their sha256 is checked. The result depends on nothing else.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import sys
from pathlib import Path

from normstab.errors import NormstabError
from normstab.experiment.data.token_sources import KJV_SAMPLE, WORD_SAMPLE, by_hash
from normstab.experiment.data.verses import NOT_ASCII, unpacked_blocks

__all__ = ["make_text_sample", "make_word_sample"]

# Words of the sample, their letters and phonemes at most, and the characters of the text.
WORDS, LETTERS, PHONEMES, CHARACTERS = 22_000, (3, 12), 12, 200_000

# Sources: cmudict 0.7b as github.com/cmusphinx/cmudict has it; Debian's sword-text-kjv 14.3-1.
SHA256 = {
    "cmudict.dict": "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
    "nt.bzs": "e7f9bc653743217cdcdf95890a708f997a03af056161d84bb540efef79e4e638",
    "nt.bzz": "135b6e70af49372f3a82c5d9cc3c00278f38dbb2c12af74ea8d4b54c18d0cd56",
}


def make_word_sample(folder: Path, target: Path = WORD_SAMPLE) -> None:
    """Write WORDS words with the phonemes of their first pronunciation, without stress marks, one word a line.

    Kept are words of a to z within the bounds, the first in order of their sha256; the lines are in alphabetical order.
    """
    found: dict[str, str] = {}
    for line in _checked(folder / "cmudict.dict").decode("utf-8").splitlines():
        word, *phonemes = re.sub(r"\d", "", line.partition("#")[0]).split()
        is_plain = re.fullmatch("[a-z]+", word) and LETTERS[0] <= len(word) <= LETTERS[1]
        if is_plain and "(" not in line and len(phonemes) <= PHONEMES:
            found.setdefault(word, " ".join(phonemes))
    kept = sorted(by_hash(found)[:WORDS])
    _write(target, "".join(f"{word} {found[word]}\n" for word in kept))


def make_text_sample(folder: Path, target: Path = KJV_SAMPLE) -> None:
    """Write the first CHARACTERS of the New Testament in the King James version, small letters, without markup."""
    index, blocks = _checked(folder / "nt.bzs"), _checked(folder / "nt.bzz")
    marked = "".join(block.decode("utf-8") for block in unpacked_blocks(index, blocks))
    plain = re.sub(r"<title.*?</title>|<[^>]*>", "", marked)
    for found, written in NOT_ASCII.items():
        plain = plain.replace(found, written)
    _write(target, " ".join(plain.split()).lower()[:CHARACTERS])


def _checked(path: Path) -> bytes:
    """Return the bytes of a file; raise NormstabError when it is not the known one."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[path.name]:
        raise NormstabError(f"{path}: sha256 is {found}, expected {SHA256[path.name]}")
    return content


def _write(target: Path, text: str) -> None:
    """Write `text` packed."""
    target.write_bytes(lzma.compress(text.encode("ascii"), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    make_word_sample(Path(sys.argv[1]))
    make_text_sample(Path(sys.argv[2]))
