"""The digests that a record may keep, as a file beside it: what each operation of the first step returned.

Bytes that do not read are told by name; what two files show together is `search`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from normstab.errors import RecordError
from normstab.experiment.records.files import DIGEST_FILE, json_text, read_json, write_atomically
from normstab.simulation.site_digests import Digest

__all__ = ["read_digests", "write_digests"]


def write_digests(directory: Path, digests: Sequence[Digest]) -> None:
    """Write the digests to `directory`, whole or not at all."""
    write_atomically(
        directory / DIGEST_FILE, json_text({"version": 1, "digests": [each.to_json() for each in digests]})
    )


def read_digests(directory: Path) -> list[Digest]:
    """Return the digests in `directory`; raise RecordError, naming the file, where there are none that read."""
    path = directory / DIGEST_FILE
    document = read_json(path)
    try:
        digests = [Digest.from_json(each) for each in document["digests"]]
        for digest in digests:
            digest.elements  # noqa: B018 - decodes it, so that a damaged one is found here
    except (TypeError, KeyError, ValueError) as error:
        raise RecordError(f"{path}: no digests: {error}; run the scenario again with record: digests") from error
    return digests
