"""Which data set came before this one, for reports; nothing is ever made from what is kept here."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import REPORT_FILE
from modelyard.errors import NotFound
from modelyard.preprocess.snapshot import read_snapshot


def remember(catalog: Catalog, dataset_uri: str, target: str, current: ArtifactRef) -> ArtifactRef | None:
    """Take down the newest data set of a URI and target; returns the one before it, if it is still there."""
    name = hashlib.sha256(f"{dataset_uri}\n{target}".encode()).hexdigest()[:32]
    uri = f"{catalog.store.root}/history/{name}.json"
    try:
        known = json.loads(catalog.store.get(uri))
    except NotFound:
        known = {"current": None, "previous": None}
    if (known["current"] or {}).get("digest") != current.digest:
        known = {"current": current.model_dump(mode="json"), "previous": known["current"]}
        catalog.store.put(uri, json.dumps(known).encode())
    return ArtifactRef.model_validate(known["previous"]) if known["previous"] else None


def difference(catalog: Catalog, current: ArtifactRef, previous: ArtifactRef | None) -> list[dict[str, Any]]:
    """What changed, as rows of a table: ``what``, ``before``, ``now``. Empty where there is nothing to compare with."""
    if previous is None:
        return []
    try:
        before, now = (json.loads(catalog.read(ref, REPORT_FILE)) for ref in (previous, current))
        files = _files(catalog, previous), _files(catalog, current)
    except NotFound:
        return []  # swept meanwhile
    return [*_file_lines(*files), *_count_lines(before, now), *_column_lines(before, now)]


def _files(catalog: Catalog, dataset: ArtifactRef) -> dict[str, str]:
    snapshot = catalog.resolve(catalog.manifest(dataset).content.inputs["snapshot"])
    return {source.name: source.sha256 for source in read_snapshot(catalog, snapshot)[1]}


def _file_lines(before: dict[str, str], now: dict[str, str]) -> list[dict[str, Any]]:
    changed = sum(name in now and now[name] != digest for name, digest in before.items())
    return [
        {"what": "files", "before": len(before), "now": len(now)},
        {"what": "files added", "before": "", "now": len(now.keys() - before.keys())},
        {"what": "files gone", "before": "", "now": len(before.keys() - now.keys())},
        {"what": "files changed", "before": "", "now": changed},
    ]


def _count_lines(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    lines = [
        {"what": f"rows {name}", "before": before["rows"].get(name, ""), "now": count}
        for name, count in now["rows"].items()
    ]
    old, new = (report["splits"]["train"]["labels"] for report in (before, now))
    labels = sorted(old.keys() | new.keys())
    return lines + [
        {"what": f"share of class {label}", "before": _share(old, label), "now": _share(new, label)}
        for label in labels
        if _share(old, label) != _share(new, label)
    ]


def _column_lines(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    old, new = (report.get("profile", {}).get("after", {}) for report in (before, now))
    lines = [
        {"what": f"column {name}", "before": name in old, "now": name in new}
        for name in sorted(old.keys() ^ new.keys())
    ]
    return lines + [
        {"what": f"{name}: {fact}", "before": old[name].get(fact), "now": new[name].get(fact)}
        for name in sorted(old.keys() & new.keys())
        for fact in ("nulls", "low", "high")
        if old[name].get(fact) != new[name].get(fact)
    ]


def _share(labels: dict[str, int], label: str) -> str:
    return f"{labels.get(label, 0) / max(sum(labels.values()), 1):.1%}"
