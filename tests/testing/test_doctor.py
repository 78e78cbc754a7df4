"""`doctor` reports what a bug report needs, from the machine itself."""

import numpy
import pytest
import torch

from normstab.testing.doctor import examine


@pytest.fixture(scope="module")
def facts():
    return examine()


def test_versions_are_those_that_run(facts):
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["versions"]["numpy"] == numpy.__version__


def test_the_versions_tested_are_stated_and_what_lies_beyond_them(facts):
    assert facts["versions"]["tested with"].startswith("torch 2.13 to 2.14, numba ")
    assert facts["versions"]["beyond that"]
    assert facts["versions"]["torch lacks"] == "nothing"


def test_the_threads_and_the_capability_are_torchs(facts):
    assert facts["device"]["torch threads"].startswith(str(torch.get_num_threads()))
    assert facts["device"]["cpu capability"] == torch.backends.cpu.get_cpu_capability()


def test_the_kernels_that_serve_are_named_and_round_rightly(facts):
    assert facts["kernels"]["cpu"].split(",")[0] in ("numba", "torch reference")


def test_the_embedded_sample_is_found_with_its_hash(facts):
    assert facts["data sets"]["fashion-mnist-sample"].startswith("sha256 ")
