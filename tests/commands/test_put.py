"""Uploads: whole, once, and going on where they were."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from commands import put as put_command
from commands.put import ingest
from modelyard.catalog import file_sha256
from modelyard.errors import ConfigError, DigestMismatch
from modelyard.storage import Store, split_uri
from modelyard.storage.clients import connect_control
from modelyard.storage.resumable import ResumableUpload, part_bytes
from modelyard.storage.transfer import PART_BYTES
from tests.serve.processes import until

# An upload of one part at a time, so that it can be killed between two.
SLOWLY = """
import sys; from pathlib import Path; from commands.put import ingest; from modelyard.settings import load_settings
from modelyard.storage import Store, resumable
resumable.PARALLEL_PARTS = 1
ingest(Store(load_settings()), Path(sys.argv[1]), sys.argv[2])
"""
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


def parts_of(store: Store, uri: str) -> dict[int, str]:
    """Numbers and ETags of the parts that an unfinished upload of this object has."""
    client, (bucket, key) = connect_control(store.settings), split_uri(uri)
    found = client.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
    ids = [upload["UploadId"] for upload in found if upload["Key"] == key]
    listed = [part for one in ids for part in client.list_parts(Bucket=bucket, Key=key, UploadId=one).get("Parts", [])]
    return {part["PartNumber"]: part["ETag"] for part in listed}


def test_a_killed_upload_goes_on_with_the_parts_that_are_there(store: Store, place: str, tmp_path: Path):
    """kill -9 in the midst of a file of five parts: the next try sends what is missing and what was damaged; a try of
    another file under the same name begins anew, and leaves nothing of the first."""
    file, uri = tmp_path / "rows.bin", f"{place}/rows.bin"
    file.write_bytes(np.random.default_rng(0).bytes(4 * PART_BYTES + 1000))
    sending = subprocess.Popen([sys.executable, "-c", SLOWLY, str(file), uri])
    until(lambda: len(parts_of(store, uri)) >= 2, "two parts")
    sending.kill()
    sending.wait()
    arrived = parts_of(store, uri)
    assert 2 <= len(arrived) < 5
    [note] = [path for path in (store.settings.home / "uploads").iterdir() if uri in path.read_text()]
    bucket, key = split_uri(uri)
    connect_control(store.settings).upload_part(
        Bucket=bucket, Key=key, UploadId=json.loads(note.read_text())["upload_id"], PartNumber=2, Body=b"x" * PART_BYTES
    )
    before = store.traffic.bytes_out
    assert ingest(store, file, uri)
    kept = len(arrived) - 1
    # At most: the store may still have finished a part of the killed one.
    assert 0 < store.traffic.bytes_out - before <= file.stat().st_size - kept * PART_BYTES
    assert store.attributes(uri)["sha256"] == file_sha256(file)
    assert not note.exists()


def test_an_upload_of_another_file_is_not_gone_on_with(store: Store, place: str, tmp_path: Path):
    """What was begun with other bytes under the same name is aborted, and so is nothing of it in what is there then; a
    note of an upload that was swept meanwhile, or one that cannot be read, costs the parts and nothing else."""
    file, uri = tmp_path / "rows.bin", f"{place}/rows.bin"
    file.write_bytes(BODY)
    begun = ResumableUpload(store.settings, file, uri, "another file's", {})
    upload_id = begun._begin()
    begun._send(upload_id, 1, 0, None)
    assert parts_of(store, uri)
    assert ingest(store, file, uri)
    assert not parts_of(store, uri)
    assert store.attributes(uri)["sha256"] == file_sha256(file)
    for spoil in (lambda: begun._abort(begun._begin()), lambda: begun._note_file.write_text("{")):
        file.write_bytes(file.read_bytes()[::-1])
        begun._sha256 = file_sha256(file)
        spoil()
        assert ingest(store, file, uri)
        assert store.get(uri) == file.read_bytes()


def test_parts_are_few_enough_for_the_store():
    """16 MiB each while ten thousand of them do; whole MiB in any case."""
    assert part_bytes(10**9) == PART_BYTES
    for size in (170 * 2**30, 5 * 2**40):
        assert part_bytes(size) % 2**20 == 0
        assert -(-size // part_bytes(size)) <= 10_000


def test_folders_keep_their_shape(tmp_path: Path):
    """Files below a folder keep their path from its name on; two files of one name are refused before anything is sent."""
    for name in ("data/a.csv", "data/deep/b.csv", "more/a.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listed = put_command._listed([tmp_path / "data", tmp_path / "more/a.csv"])
    assert [name for _, name in listed] == ["data/a.csv", "data/deep/b.csv", "a.csv"]
    with pytest.raises(ConfigError, match=r"a\.csv would be written twice"):
        put_command._listed([tmp_path / "data/a.csv", tmp_path / "more/a.csv"])
