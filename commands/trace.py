"""`modelyard trace`: from what the endpoint answered, or any artifact, back to the data and the commit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.tree import Tree

from modelyard.artifacts import ArtifactRef, Manifest
from modelyard.catalog import Catalog
from modelyard.naming import find_artifact
from modelyard.revisions import Revision
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store
from modelyard.tracking import Tracker


def trace(
    name: Annotated[
        str, typer.Argument(help="Digest (or its start), URI, model@alias or model/version.")
    ] = "digits@champion",
) -> None:
    """Show what an artifact was made from, by which runs and commit, and where it served."""
    settings = load_settings()
    catalog, tracker = Catalog(Store(settings)), Tracker(settings)
    ref = find_artifact(catalog, tracker, name)
    versions = [known for known in tracker.versions() if ref.digest in (known.artifact.digest, known.verdict.digest)]
    tree = Tree(f"[bold]{ref.kind}[/] {ref.digest}")
    for version in versions:
        tree.add(
            f"registered as [bold]{version.model_name}[/] version {version.version}, verdict {version.verdict.digest[:12]}"
        )
    for endpoint, revision in _revisions_with(catalog.store, ref):
        tree.add(
            f"served by endpoint {endpoint}, revision {revision.number} ({revision.created_at[:19]}): {revision.reason}"
        )
    _describe(tree, catalog, tracker, settings, ref, set())
    # A pipe has no width: long lines must reach it whole.
    width = None if Console().is_terminal else 400
    Console(highlight=False, width=width).print(tree)


def _revisions_with(store: Store, ref: ArtifactRef) -> Iterator[tuple[str, Revision]]:
    """The revisions in which an artifact began to serve."""
    for info in store.list(f"{store.root}/endpoints"):
        parts = info.uri.split("/")
        if parts[-2] != "revisions":
            continue
        revision = Revision.model_validate_json(store.get(info.uri))
        served = [version.artifact.digest for state in revision.models.values() for version in state.versions]
        if ref.digest in served:
            yield parts[-3], revision


def _describe(
    tree: Tree, catalog: Catalog, tracker: Tracker, settings: Settings, ref: ArtifactRef, seen: set[str]
) -> None:
    """An artifact's provenance, then its inputs below it; an input that was shown before is only named."""
    manifest = catalog.manifest(ref)
    seen.add(ref.digest)
    for line in _provenance(manifest, settings, tracker):
        tree.add(f"[dim]{line}[/]")
    for role, digest in manifest.content.inputs.items():
        source = catalog.resolve(manifest.provenance.input_uris[role])
        if digest in seen:
            tree.add(f"{role}: {source.kind} {digest} (see above)")
        else:
            _describe(tree.add(f"{role}: [bold]{source.kind}[/] {digest}"), catalog, tracker, settings, source, seen)


def _provenance(manifest: Manifest, settings: Settings, tracker: Tracker) -> Iterator[str]:
    told = manifest.provenance
    yield f"made {told.created_at} on {told.machine}, in {told.seconds} s, commit {told.commit or 'unknown'}"
    if told.flow_run_id:
        yield f"flow run {settings.api_url.removesuffix('/api')}/runs/flow-run/{told.flow_run_id}"
    if told.mlflow_run_id:
        yield f"MLflow run {tracker.run_url(told.mlflow_run_id)}"
    yield ", ".join(f"{name} {value}" for name, value in manifest.content.facts.items() if not isinstance(value, dict))
