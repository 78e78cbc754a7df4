"""The catalogue of token sets: words to turn into phonemes, verses to translate, text to go on with.

Readable without numpy. Images are `datasets`; both are chosen from by one name in `dataset.name`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normstab.errors import NormstabError
from normstab.experiment.scenario.spec import DatasetSpec

if TYPE_CHECKING:
    from normstab.experiment.data.token_sources import TokenSource

__all__ = ["TOKEN_SETS", "TokenRow", "require_token_set"]


@dataclass(frozen=True)
class TokenRow:
    """A set of token sequences: `kind` is `pairs` or `text`, `items` what a sequence is called.

    `targets` are the tokens that a network chooses among, the special ones included. `read` takes a folder and a size:
    what it takes of them is in `settings`. A set that takes a folder is not in the package.
    """

    summary: str
    kind: str
    items: str
    read: Callable[[Path | None, int | None], TokenSource]
    train: int
    test: int
    targets: int
    settings: tuple[str, ...] = ()


def _words(root: Path | None, size: int | None) -> TokenSource:
    from normstab.experiment.data.token_sources import read_words

    return read_words()


def _verses(root: Path | None, size: int | None) -> TokenSource:
    from normstab.experiment.data.verses import read_verses

    return read_verses(root, size)


def _text(root: Path | None, size: int | None) -> TokenSource:
    from normstab.experiment.data.token_sources import read_text

    return read_text(size)


# Name of a token set -> what it is and how it is read.
TOKEN_SETS: dict[str, TokenRow] = {
    "cmudict-sample": TokenRow(
        "letters to phonemes: 22,000 words of the CMU dictionary",
        "pairs",
        "words",
        _words,
        20_000,
        2000,
        42,
    ),
    "kjv-sample": TokenRow(
        "the next character of the King James New Testament, 200,000 of them",
        "text",
        "windows",
        _text,
        2812,
        312,
        37,
        ("size",),
    ),
    "verses": TokenRow(
        "English to Spanish: verses of two Bibles, Debian's sword-text-kjv and -sparv",
        "pairs",
        "verses",
        _verses,
        14_866,
        1000,
        52,
        ("root", "size"),
    ),
}


def require_token_set(spec: DatasetSpec) -> None:
    """Raise NormstabError for settings that only images have."""
    row = TOKEN_SETS.get(spec.name)
    if row is None:
        return
    wrong = {
        "augment": bool(spec.augment),
        "scale (input_scale)": spec.scale != 1.0,
        "root": spec.root is not None and "root" not in row.settings,
        "size": spec.size is not None and "size" not in row.settings,
    }
    found = [name for name, is_set in wrong.items() if is_set]
    if found:
        raise NormstabError(f"data set {spec.name!r}: dataset.{found[0]} means nothing for {row.items}; leave it out")
