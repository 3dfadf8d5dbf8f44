"""Housekeeping of the bucket: what nothing reaches any more is listed, then removed.

Live is what a registry version or an endpoint revision names, everything those were made from, and whatever is
younger than the retention of its kind. An artifact goes manifest first: from that moment nobody finds it, and what is
left of it after a crash is an abandoned attempt, which the next run sweeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from modelyard.artifacts import ArtifactKind, ArtifactRef, Frozen, Manifest
from modelyard.catalog import Catalog
from modelyard.errors import DigestMismatch, NotFound
from modelyard.revisions import Revision
from modelyard.storage import ObjectInfo, StaleUpload, Store

# How long an artifact that nothing reaches is kept: the time in which somebody may still want to look at it.
RETENTION: dict[ArtifactKind, timedelta] = {
    "snapshot": timedelta(days=30),
    "partition": timedelta(days=14),
    "dataset": timedelta(days=14),
    "pretrained": timedelta(days=30),
    "model": timedelta(days=30),
    "trial": timedelta(days=30),
    "candidate": timedelta(days=14),
    "compressed": timedelta(days=30),
    "verdict": timedelta(days=90),
}
# Where Prefect keeps what flows return: small, and of no use once nobody looks at the run.
RESULTS_FOLDER = "prefect-results"
RESULTS_KEPT = timedelta(days=90)
# Longer than any attempt may take: a training run writes a checkpoint far more often than this.
ABANDONED_AFTER = timedelta(days=2)


class Removal(Frozen):
    """One thing to remove: an artifact, an abandoned attempt, old checkpoints, a dangling upload."""

    what: str
    uri: str
    reason: str
    size: int


@dataclass
class Plan:
    """What a sweep would remove, in the order in which it does."""

    artifacts: list[Removal] = field(default_factory=list)
    leftovers: list[Removal] = field(default_factory=list)
    uploads: list[StaleUpload] = field(default_factory=list)
    objects: dict[str, list[str]] = field(default_factory=dict)

    @property
    def removals(self) -> list[Removal]:
        """Everything, as rows for a table."""
        uploads = [
            Removal(what="upload", uri=upload.uri, reason=f"begun {upload.started:%Y-%m-%d}, never finished", size=0)
            for upload in self.uploads
        ]
        return [*self.artifacts, *self.leftovers, *uploads]


@dataclass(frozen=True)
class _Folder:
    """Everything below one artifact's key."""

    uri: str
    kind: ArtifactKind
    objects: Sequence[ObjectInfo]
    manifest: Manifest | None

    @property
    def youngest(self) -> datetime:
        return max(info.modified for info in self.objects)


def plan_sweep(catalog: Catalog, registered: Iterable[ArtifactRef], now: datetime | None = None) -> Plan:
    """What may go.

    Args:
        registered: artifacts that registry versions name.
        now: the time to judge ages by.
    """
    now = now or datetime.now(UTC)
    folders = list(_folders(catalog))
    named = [ref.uri for ref in [*registered, *_served(catalog.store)]]
    # A data set's files lie with its partitions, which may be older than itself.
    whole = [folder.uri for folder in folders if folder.kind == "dataset" and _is_young(folder, now)]
    live = _reachable(folders, [*named, *whole])
    plan = Plan(uploads=list(catalog.store.control.stale_uploads(ABANDONED_AFTER)))
    for folder in folders:
        if folder.manifest is None or folder.uri in live or _is_young(folder, now):
            _plan_leftovers(plan, folder, now)
        else:
            days = RETENTION[folder.kind].days
            reason = f"no registry version or endpoint revision reaches it, older than {days} days"
            _plan_removal(plan.artifacts, plan, "artifact", folder.uri, reason, folder.objects)
    results = [
        info
        for info in catalog.store.list(f"{catalog.store.root}/{RESULTS_FOLDER}")
        if now - info.modified > RESULTS_KEPT
    ]
    if results:
        reason = f"results of flow runs older than {RESULTS_KEPT.days} days"
        _plan_removal(plan.leftovers, plan, "results", f"{catalog.store.root}/{RESULTS_FOLDER}", reason, results)
    return plan


def sweep(catalog: Catalog, plan: Plan) -> int:
    """Remove what a plan lists; returns the number of objects. May be repeated after a crash."""
    removed = 0
    for removal in plan.artifacts:
        uris = plan.objects[removal.uri]
        manifests = [uri for uri in uris if uri.endswith("/manifest.json")]
        indexes = [f"{catalog.store.root}/digests/{catalog.resolve(removal.uri).digest}"] if manifests else []
        removed += catalog.store.delete([*manifests, *indexes])
        removed += catalog.store.delete(uri for uri in uris if uri not in manifests)
    for removal in plan.leftovers:
        removed += catalog.store.delete(plan.objects[removal.uri])
    for upload in plan.uploads:
        catalog.store.control.abort_upload(upload)
    return removed + len(plan.uploads)


def _folders(catalog: Catalog) -> Iterator[_Folder]:
    """Every key of every kind, committed or not."""
    grouped: dict[str, list[ObjectInfo]] = {}
    base = f"{catalog.store.root}/artifacts"
    for info in catalog.store.list(base):
        kind, key = info.uri.removeprefix(f"{base}/").split("/")[:2]
        grouped.setdefault(f"{base}/{kind}/{key}", []).append(info)
    for uri, objects in grouped.items():
        kind = uri.removeprefix(f"{base}/").partition("/")[0]
        yield _Folder(uri, kind, objects, _manifest(catalog, uri))  # ty: ignore[invalid-argument-type]


def _manifest(catalog: Catalog, uri: str) -> Manifest | None:
    try:
        return catalog.manifest(catalog.resolve(uri))
    except (NotFound, DigestMismatch):
        return None  # not committed, or damaged: never removed as an artifact, its attempts age like any other


def _served(store: Store) -> Iterator[ArtifactRef]:
    """Artifacts that any revision of any endpoint names."""
    for info in store.list(f"{store.root}/endpoints"):
        if "/revisions/" not in info.uri:
            continue
        for state in Revision.model_validate_json(store.get(info.uri)).models.values():
            for version in [*state.versions, *([state.previous] if state.previous else [])]:
                yield version.artifact
                yield version.verdict


def _is_young(folder: _Folder, now: datetime) -> bool:
    return now - folder.youngest < RETENTION[folder.kind]


def _reachable(folders: Sequence[_Folder], roots: Iterable[str]) -> set[str]:
    """The roots' URIs and those of everything they were made from."""
    manifests = {folder.uri: folder.manifest for folder in folders if folder.manifest}
    waiting, live = list(roots), set[str]()
    while waiting:
        uri = waiting.pop()
        if uri not in live:
            live.add(uri)
            manifest = manifests.get(uri)
            waiting += list(manifest.provenance.input_uris.values()) if manifest else []
    return live


def _plan_leftovers(plan: Plan, folder: _Folder, now: datetime) -> None:
    """Attempts that lost or died, and checkpoints that training no longer needs."""
    winner = folder.manifest.provenance.attempt_id if folder.manifest else ""
    groups: dict[str, list[ObjectInfo]] = {}
    for info in folder.objects:
        parts = info.uri.removeprefix(f"{folder.uri}/").split("/")
        if parts[0] == "attempts" and parts[1] != winner:
            groups.setdefault(f"{folder.uri}/attempts/{parts[1]}", []).append(info)
        elif parts[0] == "checkpoints":
            groups.setdefault(f"{folder.uri}/checkpoints", []).append(info)
    for uri, objects in groups.items():
        is_checkpoint = uri.endswith("/checkpoints")
        # Checkpoints of an unfinished training are what its next run goes on from.
        age = RETENTION["model"] if is_checkpoint and folder.manifest is None else ABANDONED_AFTER
        if now - max(info.modified for info in objects) >= age:
            what, reason = ("checkpoints", "training is over") if is_checkpoint else ("attempt", "no manifest names it")
            _plan_removal(plan.leftovers, plan, what, uri, f"{reason}, older than {age.days} days", objects)


def _plan_removal(
    rows: list[Removal], plan: Plan, what: str, uri: str, reason: str, objects: Sequence[ObjectInfo]
) -> None:
    rows.append(Removal(what=what, uri=uri, reason=reason, size=sum(info.size for info in objects)))
    plan.objects[uri] = [info.uri for info in objects]
