"""How people name an artifact: a digest or its start, a URI, or a registered version of a model."""

from __future__ import annotations

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.errors import NotFound
from modelyard.tracking import Tracker


def find_artifact(catalog: Catalog, tracker: Tracker, name: str) -> ArtifactRef:
    """The artifact named by ``digest``, ``s3://...``, ``model@alias`` or ``model/version``.

    Raises:
        NotFound: nothing has this name.
    """
    if "://" not in name and "@" in name:
        model, _, alias = name.partition("@")
        version = tracker.version_by_alias(model, alias)
        if version is None:
            raise NotFound(f"model {model!r} has no version with the alias {alias!r}")
        return version.artifact
    if "://" not in name and "/" in name:
        model, _, number = name.partition("/")
        return tracker.version(model, number).artifact
    return catalog.resolve(name)
