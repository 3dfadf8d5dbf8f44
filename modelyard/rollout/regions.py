"""Rolling out elsewhere: an artifact is copied into a region's bucket by digest, and verified there, before its turn."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import DataError, NotFound
from modelyard.regions import region_settings
from modelyard.revisions import first_revision, latest_revision
from modelyard.rollout.config import RolloutConfig
from modelyard.rollout.stage import Release, rollback, rollout
from modelyard.rollout.watch import Watcher, ignore
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.tracking import Tracker

log = logging.getLogger(__name__)


def copy_artifact(source: Catalog, target: Catalog, ref: ArtifactRef) -> ArtifactRef:
    """The same artifact in another bucket: same key, same bytes, same digest; its manifest is put last, create-only.

    Whether it was copied now or found there, every file is read back from the target and held against its sha256.

    Raises:
        DigestMismatch: the source or the target holds other bytes than the manifest says.
        DataError: the artifact lies in several folders.
    """
    there = ref.model_copy(update={"uri": ref.uri.replace(source.store.root, target.store.root, 1)})
    with tempfile.TemporaryDirectory(prefix="modelyard-copy-") as scratch:
        if not _is_committed(target, there):
            _copy(source, target, ref, there, Path(scratch, "source"))
        target.fetch(there, Path(scratch, "target"))
    target.index(there)
    return there


def rollout_in(
    region: str,
    home: Catalog,
    tracker: Tracker,
    settings: Settings,
    *,
    model_name: str,
    candidate: ArtifactRef,
    verdict: ArtifactRef,
    config: RolloutConfig,
    origin: Origin,
    watcher: Watcher = ignore,
) -> Release:
    """Copy a judged candidate into a region, and roll it out there by the same policy.

    Aliases of the registry follow the home installation alone, and a person is asked there alone.

    Raises:
        ConfigError: there is no such region, or its file does not fit.
        DigestMismatch: what arrived is not what was sent.
        ModelyardError: as `rollout`, of the region's endpoint.
    """
    own = region_settings(settings, region)
    there = Catalog(Store(own))
    policy = config.policy.model_copy(update={"approval": False})
    return rollout(
        there,
        tracker,
        own,
        model_name=model_name,
        candidate=copy_artifact(home, there, candidate),
        verdict=copy_artifact(home, there, verdict),
        config=config.model_copy(update={"policy": policy}),
        origin=origin,
        watcher=watcher,
        sets_aliases=False,
    )


def rollback_in(
    region: str,
    tracker: Tracker,
    settings: Settings,
    *,
    model_name: str,
    config: RolloutConfig,
    origin: Origin,
    version: str = "",
) -> Release:
    """Go back in one region; raises as `rollback`."""
    own = region_settings(settings, region)
    return rollback(
        Catalog(Store(own)),
        tracker,
        own,
        model_name=model_name,
        config=config,
        origin=origin,
        version=version,
        sets_aliases=False,
    )


def is_begun_in(region: str, settings: Settings, model_name: str, candidate: ArtifactRef, origin: Origin) -> bool:
    """Whether a region's ledger names the candidate by this flow run's doing: its endpoint goes on with it, whoever is away.

    Raises:
        ConfigError: there is no such region, or its file does not fit.
        ModelyardError: its ledger cannot be read.
    """
    own = region_settings(settings, region)
    newest = latest_revision(Store(own), own.endpoint_name) or first_revision()
    state = newest.models.get(model_name)
    return state is not None and any(
        one.artifact.digest == candidate.digest and one.flow_run_id == origin.flow_run_id for one in state.versions
    )


def _is_committed(target: Catalog, there: ArtifactRef) -> bool:
    try:
        target.manifest(there)
    except NotFound:
        return False
    return True


def _copy(source: Catalog, target: Catalog, ref: ArtifactRef, there: ArtifactRef, folder: Path) -> None:
    document = source.store.get(f"{ref.uri}/manifest.json")
    manifest = source.fetch(ref, folder)
    if manifest.provenance.elsewhere:
        raise DataError(f"{ref} has files in other artifacts' folders, and cannot be copied alone")
    for name in manifest.content.files:
        target.store.upload(folder / name, manifest.file_uri(there.uri, name))
    target.store.put_new(f"{there.uri}/manifest.json", document)
    log.info("copied %s to %s", ref, there.uri)
