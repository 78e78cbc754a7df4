"""A directory with very many records is gone through entry by entry, and looked into by name."""

import os
from pathlib import Path

import pytest

from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.records import files, moved_records, record_reader
from normstab.experiment.records.files import remove_unfinished
from tests.experiment.fake_cells import cell


class Counted:
    """A directory's entries, counted as they are asked for; what is kept of them is counted too."""

    def __init__(self, number):
        self.number, self.alive, self.most = number, 0, 0

    def __call__(self, folder):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        for index in range(self.number):
            yield Entry(f"cell-{index:010x}", self)


class Entry:
    """One entry, which tells when it is forgotten."""

    def __init__(self, name, counted):
        self.name, self.path, self._counted = name, f"/nowhere/{name}", counted
        counted.alive += 1
        counted.most = max(counted.most, counted.alive)

    def is_dir(self):
        return False

    def __del__(self):
        self._counted.alive -= 1


@pytest.mark.parametrize("look", ["names", "moved", "unfinished"])
def test_no_entry_is_kept_while_a_directory_is_gone_through(look, tmp_path, monkeypatch):
    counted = Counted(20_000)
    (tmp_path / "records").mkdir()
    monkeypatch.setattr(os, "scandir", counted)
    if look == "names":
        assert list(record_reader.names_of_records(tmp_path)) == []
    elif look == "moved":
        wanted = {"00000000ff", "0000000001"}
        assert moved_records._names_of(tmp_path / "records", wanted) == ["cell-0000000001", "cell-00000000ff"]
    else:
        remove_unfinished(tmp_path)
    assert counted.most <= 3


def test_a_finished_cell_is_found_by_its_name_without_a_look_at_the_directory(tmp_path, monkeypatch):
    cells = [cell(number=n) for n in range(2)]
    execution = Execution(run_cell="tests.experiment.fake_cells:run_short_cell")
    assert len(run_cells(cells, tmp_path, execution=execution).finished) == 2
    monkeypatch.setattr(files, "remove_unfinished", lambda *_, **__: None)
    monkeypatch.setattr("normstab.experiment.execution.executor.remove_unfinished", lambda *_: None)
    looked = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: looked.append(Path(folder)) or real(folder))
    assert len(run_cells(cells, tmp_path, execution=execution).reused) == 2
    assert tmp_path / "records" not in looked
