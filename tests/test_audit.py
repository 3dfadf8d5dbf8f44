"""The audit log: noted before the change, carried to the bucket when it is there, only ever added to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelyard.audit import AuditLog, Entry, entries
from modelyard.errors import StoreUnavailable
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.workbench import OwnStore


def test_entries_wait_for_the_bucket_and_reach_it_once(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While the store is away they stay on the disk; then they are carried in order, and none can be written over."""
    own = OwnStore(settings)
    log = AuditLog(settings.model_copy(update={"home": tmp_path}))
    log.note("key added", "alice", who="bob", why="a test")
    log.note("key revoked", "alice")

    def away(*arguments: object) -> bool:
        raise StoreUnavailable("away")

    monkeypatch.setattr(OwnStore, "put_new", away)
    log.carry(own)
    assert log.has_news()
    monkeypatch.undo()
    log.carry(own)
    assert not log.has_news()
    found = list(entries(own))
    assert [(entry.who, entry.what, entry.why) for entry in found[:1]] == [("bob", "key added", "a test")]
    assert [entry.what for entry in found] == ["key added", "key revoked"]
    assert list(entries(own, "2999-01-01")) == []
    [first, _] = own.list(f"{own.root}/audit")
    forged = Entry(at="", who="mallory", what="nothing", subject="", where="")
    assert not own.put_new(first.uri, forged.model_dump_json().encode())
    assert list(entries(own)) == found


def test_an_entry_is_carried_whole_or_not_yet(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever carries entries while another is being written leaves that one alone; afterwards it is there, whole."""
    own = OwnStore(settings)
    log = AuditLog(settings.model_copy(update={"home": tmp_path}))
    flush = os.fsync

    def carried_meanwhile(descriptor: int) -> None:
        flush(descriptor)
        assert not log.has_news()
        log.carry(own)

    monkeypatch.setattr(os, "fsync", carried_meanwhile)
    log.note("endpoint notified", "endpoint")
    monkeypatch.undo()
    assert log.has_news()
    log.carry(own)
    assert [entry.what for entry in entries(own)] == ["endpoint notified"]
