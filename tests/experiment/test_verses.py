"""Verses read from texts in the format of the SWORD project: made here, and Debian's where they are installed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from normstab.errors import NormstabError
from normstab.experiment.data.datasets import data_sha256, load_dataset
from normstab.experiment.data.token_sets import TOKEN_SETS
from normstab.experiment.data.token_sources import END, IGNORED, PAD
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.data.verses import ENGLISH, SPANISH, SWORD_ROOT, plain_verse, read_verses
from normstab.experiment.scenario.spec import DatasetSpec

SHA256 = "d3765374920db337445a76a9ae58d67fc8562b13a69fe98beaec2368924aa282"


def written(folder: Path, verses: list[str], *, part: str) -> None:
    """Write one Testament, seven verses to a block; a verse without text has length 0."""
    folder.mkdir(parents=True, exist_ok=True)
    index, places, packed = b"", b"", b""
    for number, first in enumerate(range(0, len(verses), 7)):
        texts = [verse.encode() for verse in verses[first : first + 7]]
        block, start = zlib.compress(b"".join(texts)), 0
        index += struct.pack("<III", len(packed), len(block), sum(map(len, texts)))
        for text in texts:
            places += struct.pack("<IIH", number, start, len(text))
            start += len(text)
        packed += block
    for kind, content in {"bzs": index, "bzv": places, "bzz": packed}.items():
        (folder / f"{part}.{kind}").write_bytes(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of two texts of 1,200 verses, of which the second Testament has 20, one of them empty."""
    for module, word in ((ENGLISH, "Word"), (SPANISH, "Vocáblo")):
        written(tmp_path / module, [f"<w>{word}</w> {n:b}" for n in range(1180)], part="ot")
        written(tmp_path / module, ["", *(f"{word}\n{n:b}.<note>no</note>" for n in range(1181, 1200))], part="nt")
    return tmp_path


def test_verses_are_paired_by_their_number(root: Path) -> None:
    source = read_verses(root)
    assert len(source.train[0]) == 199 and len(source.test[0]) == 1000
    letters = sorted(" .01dorw")
    signs = sorted(" .01bclová")
    assert (source.sources, source.targets) == (END + 1 + len(letters), END + 1 + len(signs))
    for english, spanish in zip(*source.train, strict=True):
        source_text = "".join(letters[token - END - 1] for token in english if token != PAD)
        target_text = "".join(signs[token - END - 1] for token in spanish if token not in (IGNORED, END))
        assert source_text.startswith("word ") and target_text == source_text.replace("word", "vocáblo")
        assert list(spanish).index(END) == len(target_text)


def test_a_size_leaves_out_longer_verses(root: Path) -> None:
    # "vocáblo 1111111111" has 18 characters, and the number is 1023.
    found = read_verses(root, 18)
    assert len(found.train[0]) + len(found.test[0]) == 1024
    with pytest.raises(NormstabError, match=r"dataset.size 10: \d+ verses are that short; the test takes 1000"):
        read_verses(root, 10)


def test_markup_headings_and_notes_are_no_part_of_a_verse() -> None:
    marked = (
        '<title type="x">A Psalm</title><w lemma="1">In</w> the ¶ <q>beginning’s</q><note>or: at first</note>\n end'
    )
    assert plain_verse(marked) == "in the beginning's end"


def test_a_text_that_is_absent_damaged_or_of_another_order_is_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NormstabError, match="install Debian's sword-text-kjv and sword-text-sparv, or give"):
        read_verses(tmp_path / "nowhere")
    block = root / SPANISH / "nt.bzz"
    content = block.read_bytes()
    for damaged in (content[:-3], content[:1] + b"\xff" + content[2:], b""):
        block.write_bytes(damaged)
        with pytest.raises(NormstabError, match=r"cut off|cannot be read"):
            read_verses(root)
    written(root / SPANISH, ["uno"], part="nt")
    with pytest.raises(NormstabError, match="1200 verses in engKJV2006eb, 1181 in spaRV1909eb: not one order"):
        read_verses(root)


def test_a_scenario_gives_the_folder_and_the_size(root: Path) -> None:
    data = load_dataset(DatasetSpec("verses", root=str(root), size=18, train=20, test=50))
    assert isinstance(data, TokenDataset) and (len(data.train_y), len(data.test_y)) == (20, 50)
    with pytest.raises(NormstabError, match=r"dataset.augment means nothing for verses"):
        load_dataset(DatasetSpec("verses", root=str(root), augment=("crop",)))


@pytest.mark.skipif(not (SWORD_ROOT / SPANISH).is_dir(), reason="Debian's sword-text-kjv and sword-text-sparv")
def test_the_packaged_verses_are_what_the_catalogue_says() -> None:
    source, row = read_verses(), TOKEN_SETS["verses"]
    assert (len(source.train[0]), len(source.test[0]), source.targets) == (row.train, row.test, row.targets)
    assert source.sha256 == data_sha256(DatasetSpec("verses")) == SHA256
