"""Uploads that go on where a killed one stopped: S3's multipart upload, with a note of it kept on this machine.

The store keeps the parts that have arrived until the upload is completed or aborted. The note says which upload belongs to
which file (by sha256) and object; each part that is there is held against the file's own bytes before it is left as it is,
by length and MD5, which is a part's ETag. Where a store's ETags are something else (encryption with keys of one's own), no
part is believed, and all are sent again into the same upload.

The note alone ties the attributes, which the store took when the upload began, to the bytes: so an upload of another file is
never gone on with, and is aborted. What nobody comes back for is swept with the abandoned uploads (`modelyard.maintain`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from modelyard.settings import Settings
from modelyard.storage.clients import connect_control, encryption_arguments
from modelyard.storage.failures import control_translated
from modelyard.storage.transfer import PART_BYTES
from modelyard.storage.uris import split_uri

log = logging.getLogger(__name__)

PARALLEL_PARTS = 4  # each in memory, and hashed, while it is sent
MAX_PARTS = 10_000  # of S3
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Note:
    """What this machine remembers of an upload under way. ``sha256`` is the whole file's."""

    uri: str
    upload_id: str
    sha256: str
    part_bytes: int


class ResumableUpload:
    """One file on its way to one object.

    Args:
        sha256: of the file; the caller knows it, and a note with another one is of another file.
        attributes: kept with the object.
    """

    def __init__(self, settings: Settings, path: Path, uri: str, sha256: str, attributes: Mapping[str, str]) -> None:
        self._settings = settings
        self._client = connect_control(settings)
        self._path, self._uri, self._sha256, self._attributes = path, uri, sha256, dict(attributes)
        self._bucket, self._key = split_uri(uri)
        self._size = path.stat().st_size
        self._part_bytes = part_bytes(self._size)
        name = hashlib.sha256(f"{settings.store_url} {uri}".encode()).hexdigest()[:32]
        self._note_file = settings.home / "uploads" / f"{name}.json"

    def run(self) -> int:
        """Send what is missing, and complete. Returns the bytes that were sent.

        Raises:
            StoreUnavailable: it broke off; the next try goes on from here.
            StoreRefused: the store takes no such upload.
        """
        with control_translated(self._uri):
            upload_id, arrived = self._resumed() or (self._begin(), {})
            starts = range(0, self._size, self._part_bytes)
            with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
                parts = [
                    pool.submit(self._send, upload_id, number, start, arrived.get(number))
                    for number, start in enumerate(starts, start=1)
                ]
                try:
                    done = [part.result() for part in parts]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # the rest would only be sent into a broken link
                    raise
            self._client.complete_multipart_upload(
                **self._object, UploadId=upload_id,
                MultipartUpload={"Parts": [{"PartNumber": n, "ETag": tag} for n, (tag, _) in enumerate(done, start=1)]},
            )  # fmt: skip
        self._note_file.unlink(missing_ok=True)
        return sum(sent for _, sent in done)

    @property
    def _object(self) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key}

    def _resumed(self) -> tuple[str, dict[int, tuple[int, str]]] | None:
        """The upload that the note names, and number, length and ETag of its parts; None where there is nothing to go on
        with."""
        note = self._read_note()
        if note is None:
            return None
        if (note.uri, note.sha256, note.part_bytes) != (self._uri, self._sha256, self._part_bytes):
            self._abort(note.upload_id)
            return None
        parts: dict[int, tuple[int, str]] = {}
        try:
            pages = self._client.get_paginator("list_parts").paginate(**self._object, UploadId=note.upload_id)
            for page in pages:
                parts |= {part["PartNumber"]: (part["Size"], part["ETag"]) for part in page.get("Parts", [])}
        except self._client.exceptions.NoSuchUpload:
            return None  # completed, or swept
        log.info("%s: going on with %d parts that are there", self._uri, len(parts))
        return note.upload_id, parts

    def _begin(self) -> str:
        created = self._client.create_multipart_upload(
            **self._object, Metadata=self._attributes, **encryption_arguments(self._settings)
        )
        note = Note(uri=self._uri, upload_id=created["UploadId"], sha256=self._sha256, part_bytes=self._part_bytes)
        self._note_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._note_file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(asdict(note)))
        partial.replace(self._note_file)
        return note.upload_id

    def _send(self, upload_id: str, number: int, start: int, arrived: tuple[int, str] | None) -> tuple[str, int]:
        """One part, unless it has arrived as it is; its ETag, and the bytes that were sent for it."""
        with self._path.open("rb") as file:
            body = os.pread(file.fileno(), self._part_bytes, start)
        md5 = hashlib.md5(body, usedforsecurity=False)
        if arrived and (arrived[0], arrived[1].strip('"')) == (len(body), md5.hexdigest()):
            return arrived[1], 0
        sent = self._client.upload_part(
            **self._object, UploadId=upload_id, PartNumber=number, Body=body,
            ContentMD5=base64.b64encode(md5.digest()).decode(),
        )  # fmt: skip
        return sent["ETag"], len(body)

    def _abort(self, upload_id: str) -> None:
        with suppress(self._client.exceptions.NoSuchUpload):  # completed, or swept
            self._client.abort_multipart_upload(**self._object, UploadId=upload_id)

    def _read_note(self) -> Note | None:
        try:
            return Note(**json.loads(self._note_file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as failure:
            log.warning("%s: cannot be used, so the upload of %s begins anew: %s", self._note_file, self._uri, failure)
            return None


def part_bytes(size: int) -> int:
    """Bytes of each part of an object, in whole MiB: few enough parts for S3, at most 16 MiB while they do."""
    needed = -(-size // (MAX_PARTS * MIB)) * MIB
    return max(PART_BYTES, needed)
