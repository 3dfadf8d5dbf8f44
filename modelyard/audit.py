"""Who changed what, when and why, where revisions do not say it: keys, signatures, admin calls. Entries are only added.

    <home>/endpoint/audit/<moment>-<token>.json    noted, on this machine, before the change is made
    audit/<day>/<moment>-<token>.json              in the bucket, create-only; the endpoint carries them there

Noting needs no bucket: a key can be revoked while it is away, and the entry follows.
"""

from __future__ import annotations

import getpass
import logging
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

from pydantic import ValidationError

from modelyard.artifacts import Frozen
from modelyard.errors import TransientError
from modelyard.settings import Settings
from modelyard.storage import Store

logger = logging.getLogger(__name__)


class Entry(Frozen):
    """One change: ``who`` did ``what`` to ``subject``, on the machine ``where``."""

    at: str
    who: str
    what: str
    subject: str
    why: str = ""
    where: str


class AuditLog:
    """The log of one installation."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.home / "endpoint" / "audit"

    def note(self, what: str, subject: str, *, who: str = "", why: str = "") -> None:
        """Note a change, durably, before it is made; by the user of this process unless somebody else is named."""
        now = datetime.now(UTC)
        entry = Entry(
            at=now.isoformat(), who=who or _user(), what=what, subject=subject, why=why, where=platform.node()
        )
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{now:%Y%m%dT%H%M%S.%f}-{uuid4().hex[:8]}.json"
        partial = self._folder / f"{name}.partial"  # which no `*.json` matches: pathlib's matches hidden files
        with partial.open("w") as file:
            file.write(entry.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._folder / name)

    def has_news(self) -> bool:
        """Whether entries wait to be carried to the bucket."""
        return any(self._folder.glob("*.json"))

    def carry(self, store: Store) -> None:
        """Put what was noted into the bucket. What cannot be put now stays, and is tried again."""
        for path in sorted(self._folder.glob("*.json")):
            day = f"{path.name[:4]}-{path.name[4:6]}-{path.name[6:8]}"
            try:
                store.put_new(f"{store.root}/audit/{day}/{path.name}", path.read_bytes())
            except TransientError as failure:
                logger.info("the audit log waits for the bucket: %s", failure)
                return
            except FileNotFoundError:
                continue  # another router was faster
            path.unlink(missing_ok=True)


def entries(store: Store, since_day: str = "") -> Iterator[Entry]:
    """What the bucket holds, the oldest first, from a day (``2026-11-22``) on."""
    for info in sorted(store.list(f"{store.root}/audit"), key=lambda info: info.uri):
        if info.uri.split("/")[-2] >= since_day:
            try:
                yield Entry.model_validate_json(store.get(info.uri))
            except ValidationError:
                logger.warning("%s is no entry of the audit log", info.uri)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
