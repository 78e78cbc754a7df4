"""Data that another process read are what this one would have read, and are taken in their place."""

import subprocess
import sys

import numpy as np
import pytest

from normstab.experiment.data.datasets import lendable
from normstab.experiment.scenario.spec import DatasetSpec

TAKEN = """
import pickle, sys
from dataclasses import replace
from normstab.experiment.data.datasets import data_sha256, load_dataset
from normstab.experiment.data.loans import MOST_LENT, _LENT, lend
from normstab.experiment.scenario.spec import DatasetSpec
loan = pickle.loads(sys.stdin.buffer.read())
marked = replace(loan, source=replace(loan.source, sha256="lent"))
lend(None), lend(marked), lend(loan)
spec = DatasetSpec(*sys.argv[1:2], train=16, test=16)
print(data_sha256(spec), load_dataset(spec).sha256)
for size in range(2, 6):
    lend(replace(loan, key=(spec.name, None, size)))
assert len(_LENT) == MOST_LENT
"""


@pytest.mark.parametrize("name", ["synthetic", "kjv-sample"])
def test_a_set_that_was_lent_is_read_no_more(name):
    import pickle

    loan = lendable(DatasetSpec(name))
    assert loan is not None
    done = subprocess.run(
        [sys.executable, "-c", TAKEN, name], input=pickle.dumps(loan), capture_output=True, check=True
    )
    assert done.stdout.split() == [b"lent", b"lent"]


def test_what_is_lent_is_what_would_be_read():
    spec = DatasetSpec("synthetic")
    loan, again = lendable(spec), lendable(spec)
    assert np.array_equal(loan.source.train, again.source.train) and loan.key == ("synthetic", None, None)


def test_a_set_that_is_not_here_or_stays_in_files_is_left_to_the_nodes(tmp_path):
    assert lendable(DatasetSpec("cifar10", root=str(tmp_path))) is None
    assert lendable(DatasetSpec("imagefolder", root=str(tmp_path / "none"))) is None
