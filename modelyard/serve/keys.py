"""API keys: who may ask for predictions, who may administrate, and how often.

    python -m modelyard.serve.keys add alice --scope predict --per-second 50 --per-day 100000 --reason "her team's app"
    python -m modelyard.serve.keys list
    python -m modelyard.serve.keys revoke alice

The file holds SHA-256 of each key, not the key: keys are 256 random bits, so nothing slower is needed. A running
endpoint reads the file again when it changed, so keys come and go without a restart; two keys of one name's owner
(`alice`, `alice-2`) overlap while a client changes over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError

from modelyard.artifacts import Frozen
from modelyard.audit import AuditLog
from modelyard.errors import ConfigError, ModelyardError, NotFound
from modelyard.serve.answers import Header, HttpError
from modelyard.serve.metering import Meter
from modelyard.settings import Settings, load_settings

logger = logging.getLogger(__name__)

Scope = Literal["predict", "admin"]
PREFIX = "my_"
LOOK_SECONDS = 1.0
_CHALLENGE: Header = (b"www-authenticate", b"Bearer")


class Key(Frozen):
    """One key, as it is kept.

    Attributes:
        sha256: of the whole key, hex.
        per_second: inference requests it may make, with bursts of a second's worth; None: any number.
        per_day: the same for a day (UTC).
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: list[Scope] = Field(min_length=1)
    per_second: float | None = Field(None, gt=0)
    per_day: int | None = Field(None, gt=0)


_KEYS = TypeAdapter(list[Key])


class Bucket:
    """A key's allowance: so many tokens a second, at most one second's worth of them (and at least one)."""

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._tokens = self._most
        self._at = now

    def take(self, now: float) -> float:
        """Take one; returns the seconds until there is one again, 0 where it was there."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_second
        self._tokens -= 1
        return 0.0


class Guard:
    """Admits requests by their keys.

    Args:
        path: the file of the keys; it may be absent.
        admin_token: one more key, with every scope.
        is_required: whether requests need a key at all. The admin routes need one wherever there is an admin token.
        meter: counts each key's requests of the day.
    """

    def __init__(
        self,
        path: Path,
        *,
        admin_token: str | None,
        is_required: bool,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self.meter = meter or Meter()
        self._admin_token = hashlib.sha256(admin_token.encode()).hexdigest() if admin_token else None
        self._is_required = is_required
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._buckets: dict[str, Bucket] = {}
        self._seen: tuple[int, int, int] | None = None
        self._looked_at = -LOOK_SECONDS

    def admit(self, headers: Iterable[Header], scope: Scope) -> str:
        """Let a request pass; returns the name of its key, or nothing where none is needed.

        Raises:
            HttpError: 401 without a known key, 403 without the scope, 429 beyond the key's rate or its quota.
        """
        if not self._is_required and (scope == "predict" or self._admin_token is None):
            return ""
        key = self._known(headers)
        if scope not in key.scopes:
            raise HttpError(403, f"the key {key.name!r} is not for {scope} requests, but {', '.join(key.scopes)}")
        if scope == "predict":
            if key.per_second is not None:
                self._count(key, key.per_second)
            self.meter.count(key.name, key.per_day)
        return key.name

    def _known(self, headers: Iterable[Header]) -> Key:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        kind, _, secret = given.partition(b" ")
        # By digest: what a comparison's time tells of a digest is of no use to who guesses keys.
        digest = hashlib.sha256(secret).hexdigest()
        if kind.lower() == b"bearer":
            if digest == self._admin_token:
                return Key(name="admin-token", sha256=digest, scopes=["predict", "admin"])
            self._look()
            if key := self._keys.get(digest):
                return key
        raise HttpError(401, "this needs a key of the endpoint: Authorization: Bearer <key>", [_CHALLENGE])

    def _count(self, key: Key, per_second: float) -> None:
        now = self._clock()
        bucket = self._buckets.get(key.sha256) or self._buckets.setdefault(key.sha256, Bucket(per_second, now))
        wait_seconds = bucket.take(now)
        if wait_seconds:
            again = (b"retry-after", b"%d" % ceil(wait_seconds))
            raise HttpError(429, f"the key {key.name!r} may ask {per_second:g} times a second", [again])

    def _look(self) -> None:
        """Read the file again where it changed, at most once a second."""
        now = self._clock()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return
            keys = read_keys(self._path)
        except FileNotFoundError:
            seen, keys = None, []
        except (OSError, ConfigError) as failure:
            logger.warning("the keys cannot be read; those known stay: %s", failure)
            return
        self._seen = seen
        self._keys = {key.sha256: key for key in keys}
        self._buckets = {}


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        ConfigError: it is not such a file.
    """
    try:
        return _KEYS.validate_json(path.read_bytes())
    except ValidationError as invalid:
        first = invalid.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(str(path), f"{place}: {first['msg']}") from None


def add_key(
    path: Path, name: str, scopes: Sequence[Scope], per_second: float | None, per_day: int | None = None
) -> str:
    """Make a key; it is returned, and kept nowhere.

    Raises:
        ConfigError: a name that is taken or that cannot be one.
    """
    keys = read_keys(path) if path.exists() else []
    if any(key.name == name for key in keys):
        raise ConfigError("name", f"there is a key {name!r} already; revoke it, or take another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    try:
        made = Key(name=name, sha256=digest, scopes=list(scopes), per_second=per_second, per_day=per_day)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        raise ConfigError(str(first["loc"][0]), f"{first['msg']} (got {first['input']!r})") from None
    _write(path, [*keys, made])
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Forget a key; a running endpoint refuses it within a second.

    Raises:
        NotFound: there is none of that name.
    """
    keys = read_keys(path) if path.exists() else []
    kept = [key for key in keys if key.name != name]
    if len(kept) == len(keys):
        raise NotFound(f"there is no key {name!r}; there are: {', '.join(key.name for key in keys) or 'none'}")
    _write(path, kept)


def keys_file(settings: Settings) -> Path:
    return settings.home / "endpoint" / "keys.json"


def _write(path: Path, keys: Sequence[Key]) -> None:
    """As one step, and for the owner's eyes only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps([key.model_dump() for key in keys], indent=1))
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings()
        path, audit = keys_file(settings), AuditLog(settings)
        if options.action == "add":
            scopes: list[Scope] = options.scope or ["predict"]
            audit.note("key added", f"{options.name} ({', '.join(scopes)})", why=options.reason)
            print(add_key(path, options.name, scopes, options.per_second, options.per_day))
            print("It is shown this once, and kept as a digest only.", file=sys.stderr)
        elif options.action == "revoke":
            audit.note("key revoked", options.name, why=options.reason)
            revoke_key(path, options.name)
        else:
            for key in read_keys(path) if path.exists() else []:
                rate = f"{key.per_second:g}/s" if key.per_second else "any rate"
                quota = f"  {key.per_day}/day" if key.per_day else ""
                print(f"{key.name}  {','.join(key.scopes)}  {rate}{quota}")
    except ModelyardError as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modelyard.serve.keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    adding = actions.add_parser("add", help="make a key and print it")
    adding.add_argument("name")
    adding.add_argument("--scope", action="append", choices=["predict", "admin"], help="predict unless given")
    adding.add_argument("--per-second", type=float, help="inference requests a second; any number unless given")
    adding.add_argument("--per-day", type=int, help="inference requests a day (UTC); any number unless given")
    revoking = actions.add_parser("revoke", help="forget a key")
    revoking.add_argument("name")
    for action in (adding, revoking):
        action.add_argument("--reason", default="", help="why, for the audit log")
    actions.add_parser("list", help="names, scopes and rates")
    return parser


if __name__ == "__main__":
    main()
