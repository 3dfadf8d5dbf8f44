"""Uploads: whole, once, and going on where they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from commands import put as put_command
from commands.put import ingest
from modelyard.errors import ConfigError, DigestMismatch
from modelyard.storage import Store

BODY = bytes(range(256)) * 70_000  # more than one part


@pytest.fixture
def place(store: Store) -> str:
    return f"{store.root}/raw/{uuid4().hex}"


def test_what_is_there_is_not_sent_again(store: Store, place: str, tmp_path: Path):
    """The same bytes are skipped, whoever put them there; other bytes of the same size are replaced."""
    file = tmp_path / "rows.csv"
    file.write_bytes(BODY)
    assert ingest(store, file, f"{place}/rows.csv")
    sent = store.traffic.bytes_out
    assert not ingest(store, file, f"{place}/rows.csv")
    store.put(f"{place}/other.csv", BODY)
    sent += len(BODY)
    assert not ingest(store, file, f"{place}/other.csv")
    assert store.traffic.bytes_out == sent
    file.write_bytes(BODY[::-1])
    assert ingest(store, file, f"{place}/rows.csv")
    assert store.get(f"{place}/rows.csv") == BODY[::-1]


class Mangling(Store):
    """A real store behind a link that flips a byte on the way up."""

    def upload(self, path: Path, uri: str, attributes: Mapping[str, str] | None = None) -> None:
        del attributes
        self.put(uri, b"X" + path.read_bytes()[1:])


def test_bytes_that_changed_on_the_way_are_noticed(store: Store, place: str, tmp_path: Path):
    """What arrived is read back; what is not the file does not stay."""
    file = tmp_path / "rows.csv"
    file.write_bytes(b"a,b\n1,2\n")
    with pytest.raises(DigestMismatch, match=r"rows\.csv: sha256 is"):
        ingest(Mangling(store._settings), file, f"{place}/rows.csv")
    assert not store.exists(f"{place}/rows.csv")


def test_folders_keep_their_shape(tmp_path: Path):
    """Files below a folder keep their path from its name on; two files of one name are refused before anything is sent."""
    for name in ("data/a.csv", "data/deep/b.csv", "more/a.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listed = put_command._listed([tmp_path / "data", tmp_path / "more/a.csv"])
    assert [name for _, name in listed] == ["data/a.csv", "data/deep/b.csv", "a.csv"]
    with pytest.raises(ConfigError, match=r"a\.csv would be written twice"):
        put_command._listed([tmp_path / "data/a.csv", tmp_path / "more/a.csv"])
