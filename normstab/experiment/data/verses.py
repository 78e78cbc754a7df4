"""English verses beside Spanish ones, from two texts in the format of the SWORD project, as Debian packages them.

A text is, for the Old and the New Testament (`ot`, `nt`), three files: `bzz` holds blocks packed by zlib one after
another, `bzs` says where each begins, `bzv` in which block a verse is, and where:

    bzs   offset u32 | packed size u32 | size u32            for each block
    bzv   block u32 | offset in the block u32 | length u16   for each verse, in the order of the King James version

Both texts have that order, so that equal numbers are the same verse. Source: zverse.cpp of the SWORD library 1.9.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from pathlib import Path

from normstab.errors import NormstabError
from normstab.experiment.data.token_sources import END, IGNORED, PAD, TokenSource, by_hash, numbered, padded
from normstab.experiment.records.files import read_plain_file

__all__ = ["NOT_ASCII", "SWORD_ROOT", "plain_verse", "read_verses", "unpacked_blocks"]

SWORD_ROOT = Path("/usr/share/sword/modules/texts/ztext")
"""Where Debian's packages put the texts."""
ENGLISH, SPANISH = "engKJV2006eb", "spaRV1909eb"
PACKAGES = {ENGLISH: "sword-text-kjv", SPANISH: "sword-text-sparv"}
MOST_BYTES = 2**26  # of an unpacked block: a book of either text has less than a million
TEST_VERSES = 1000
LONGEST = 128

NOT_ASCII = {"’": "'", "¶": " ", "æ": "ae", "Æ": "ae"}
"""What the English text has beyond ASCII, and what is written for it."""
SIGNS = {**NOT_ASCII, "—": "-", "\\": " ", "[": "(", "]": ")"}


def read_verses(root: Path | None = None, size: int | None = None) -> TokenSource:
    """Return the verses that have at most `size` characters (128) in both languages, English to Spanish.

    `root` is the folder that has both texts. The order is that of the hashes of the English verses, the last
    TEST_VERSES are the test set. Raises NormstabError where a text is not there, damaged, or has no such verse.
    """
    folder, longest = SWORD_ROOT if root is None else root, LONGEST if size is None else size
    both = [_verses(folder, module) for module in (ENGLISH, SPANISH)]
    if len(both[0]) != len(both[1]):
        raise NormstabError(f"{folder}: {len(both[0])} verses in {ENGLISH}, {len(both[1])} in {SPANISH}: not one order")
    every = {english: spanish for english, spanish in zip(*both, strict=True) if english and spanish}
    letters, signs = (numbered(sign for verse in side for sign in verse) for side in (every, every.values()))
    kept = by_hash(verse for verse in every if max(len(verse), len(every[verse])) <= longest)
    if len(kept) <= TEST_VERSES:
        raise NormstabError(f"dataset.size {longest}: {len(kept)} verses are that short; the test takes {TEST_VERSES}")
    source = padded([[letters[letter] for letter in verse] for verse in kept], PAD)
    target = padded([[*(signs[sign] for sign in every[verse]), END] for verse in kept], IGNORED)
    cut = len(kept) - TEST_VERSES
    text = "".join(f"{english}\t{spanish}\n" for english, spanish in every.items())
    return TokenSource(
        "pairs",
        (source[:cut], target[:cut]),
        (source[cut:], target[cut:]),
        END + 1 + len(letters),
        END + 1 + len(signs),
        hashlib.sha256(text.encode()).hexdigest(),
    )


def plain_verse(marked: str) -> str:
    """Return a verse in small letters, without headings, notes and markup."""
    plain = re.sub(r"<title.*?</title>|<note.*?</note>|<[^>]*>", "", marked, flags=re.DOTALL)
    for sign, written in SIGNS.items():
        plain = plain.replace(sign, written)
    return " ".join(plain.split()).lower()


def _verses(root: Path, module: str) -> list[str]:
    """Return every verse of a text, plain; empty where it has none."""
    folder = root / module
    if not folder.is_dir():
        raise NormstabError(
            f"no text at {folder}: install Debian's {PACKAGES[ENGLISH]} and {PACKAGES[SPANISH]}, or give dataset.root, "
            f"the folder of {ENGLISH} and {SPANISH}; cmudict-sample and kjv-sample need neither"
        )
    found: list[str] = []
    for part in ("ot", "nt"):
        try:
            found += _part(folder, part)
        except (OSError, struct.error, zlib.error, IndexError, UnicodeDecodeError) as error:
            raise NormstabError(f"{folder}: the text {part} cannot be read: {error}") from error
    return found


def _part(folder: Path, part: str) -> list[str]:
    """Return the verses of one Testament."""
    index, verses, packed = (read_plain_file(folder / f"{part}.{kind}") for kind in ("bzs", "bzv", "bzz"))
    blocks = unpacked_blocks(index, packed)
    return [
        plain_verse(blocks[block][start : start + length].decode("utf-8")) if length else ""
        for block, start, length in struct.iter_unpack("<IIH", verses)
    ]


def unpacked_blocks(index: bytes, packed: bytes) -> list[bytes]:
    """Return the blocks of a Testament; raise zlib.error where one is cut off or larger than any book."""
    blocks = []
    for start, length, _ in struct.iter_unpack("<III", index):
        unpacker = zlib.decompressobj()
        blocks.append(unpacker.decompress(packed[start : start + length], MOST_BYTES))
        if not unpacker.eof:
            raise zlib.error(f"a block is cut off, or has more than {MOST_BYTES} bytes")
    return blocks
