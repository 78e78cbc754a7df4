"""Token sets: the samples are what they were made of, splits are disjoint, padding changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from normstab.errors import NormstabError
from normstab.experiment.data.datasets import data_sha256, load_dataset
from normstab.experiment.data.samples.make_language_samples import make_text_sample, make_word_sample
from normstab.experiment.data.token_sets import TOKEN_SETS
from normstab.experiment.data.token_sources import (
    BEGIN,
    END,
    IGNORED,
    KJV_SAMPLE,
    PAD,
    WORD_SAMPLE,
    read_text,
    read_words,
)
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.scenario.spec import DatasetSpec

# Of the unpacked texts; they are in every record, and change only when the samples are made anew.
SHA256 = {
    "cmudict-sample": "1bebaab1ef48e41b256a2996d5314b5fc776ba06532c4df1dc324e1b424de7ac",
    "kjv-sample": "1706ed82d907f7161a529f31e68d9a013d0358ee98e9d526f684a1abfcc33094",
}


def tokens(name: str, **chosen: int) -> TokenDataset:
    data = load_dataset(DatasetSpec(name, **chosen))  # type: ignore[arg-type]
    assert isinstance(data, TokenDataset)
    return data


@pytest.mark.parametrize("name", SHA256)
def test_a_sample_is_the_one_that_the_catalogue_describes(name: str) -> None:
    data, row = tokens(name), TOKEN_SETS[name]
    assert data.sha256 == data_sha256(DatasetSpec(name)) == SHA256[name]
    assert (len(data.train_y), len(data.test_y), data.classes, data.kind) == (
        row.train,
        row.test,
        row.targets,
        row.kind,
    )
    assert int(data.train_y.max()) < data.classes and int(data.train_x.max()) < data.sources
    assert set(data.test_y.unique().tolist()) <= set(data.train_y.unique().tolist())


def test_the_samples_are_small_and_their_licences_lie_beside_them() -> None:
    assert WORD_SAMPLE.stat().st_size + KJV_SAMPLE.stat().st_size < 200_000
    licence = (WORD_SAMPLE.parent / "LICENSE-cmudict").read_text()
    assert "Carnegie Mellon University" in licence and "Redistributions in binary form must reproduce" in licence
    assert "Public domain" in (WORD_SAMPLE.parent / "LICENSE-kjv").read_text()


def test_no_word_is_in_both_splits_and_a_pair_is_as_the_dictionary_has_it() -> None:
    source = read_words()
    rows = [{tuple(row) for row in side.tolist()} for side in (source.train[0], source.test[0])]
    assert len(rows[0]) == 20_000 and len(rows[1]) == 2000 and not rows[0] & rows[1]
    letters = [letter - END - 1 + ord("a") for letter in source.train[0][0] if letter != PAD]
    assert "".join(map(chr, letters)).isalpha()
    assert all((row != IGNORED).sum() == list(row).index(END) + 1 for row in source.train[1][:100])


def test_windows_lie_side_by_side_and_their_targets_are_the_next_characters() -> None:
    source = read_text(16)
    x, y = source.train
    assert np.array_equal(x.ravel()[1:], y.ravel()[:-1])
    assert len(source.train[0]) + len(source.test[0]) >= 200_000 // 16 - 2


def test_a_batch_is_as_wide_as_its_longest_sequence_and_the_decoder_sees_what_came_before() -> None:
    data = tokens("cmudict-sample", train=64, test=8)
    (source, before), y = data.train_batch(torch.arange(64))
    assert bool((source != PAD).any(0).all()) and bool((y != IGNORED).any(0).all())
    assert bool((before[:, 0] == BEGIN).all())
    follows = y[:, :-1]
    assert torch.equal(before[:, 1:][follows != IGNORED], follows[follows != IGNORED])
    assert sum(len(targets) for _, targets in data.test_batches(3)) == 8


@pytest.mark.parametrize("name", ["cmudict-sample", "kjv-sample"])
def test_how_many_predictions_a_batch_asks_for_is_known_without_it(name: str) -> None:
    data = tokens(name, train=64, test=8)
    for index in (torch.arange(64), torch.tensor([5, 3]), torch.tensor([7])):
        (source, *_), y = data.train_batch(index)
        assert data.predictions(index) == int((y != IGNORED).sum()) > 0
        assert len(source) == len(y) == len(index)


@pytest.mark.parametrize(
    "chosen",
    [{"augment": ("crop",)}, {"scale": 2.0}, {"root": "there"}, {"size": 9}],
    ids=lambda chosen: next(iter(chosen)),
)
def test_what_only_images_have_is_refused(chosen: dict[str, object]) -> None:
    with pytest.raises(NormstabError, match="means nothing for words; leave it out"):
        load_dataset(DatasetSpec("cmudict-sample", **chosen))  # type: ignore[arg-type]


def test_too_many_sequences_and_too_long_a_window_are_refused() -> None:
    with pytest.raises(NormstabError, match="20001 training sequences were asked for, the set has 20000"):
        load_dataset(DatasetSpec("cmudict-sample", train=20_001))
    with pytest.raises(NormstabError, match="the test text has 20000 characters"):
        load_dataset(DatasetSpec("kjv-sample", size=20_000))


def test_the_samples_are_not_made_from_other_files(tmp_path: Path) -> None:
    for name in ("cmudict.dict", "nt.bzs", "nt.bzz"):
        (tmp_path / name).write_bytes(b"other")
    for make in (make_word_sample, make_text_sample):
        with pytest.raises(NormstabError, match="sha256 is"):
            make(tmp_path, tmp_path / "sample")
