"""The trained network that a package was made from: the one place where the score has a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.errors import ConfigError, DataError, DigestMismatch, NotFound
from modelyard.models.config import MODEL_FILE
from modelyard.models.weights import fetch_weights

if TYPE_CHECKING:
    from torch import nn

MODEL_ROLE = "model"


@dataclass(frozen=True)
class Parent:
    """A trained network, or why there is none.

    Attributes:
        network: from network input (n, width) to raw outputs (n, k), in evaluation mode; None: not at hand.
        reason: why not.
    """

    network: nn.Module | None = None
    reason: str = ""


def find_parent(catalog: Catalog, package_ref: ArtifactRef, width: int, folder: Path) -> Parent:
    """The network that the package's manifest names, fetched and built. Its absence is an answer, not an error.

    Args:
        width: of the network input that the package's transform makes.

    Raises:
        StoreUnavailable: nobody knows whether there is one.
    """
    manifest = catalog.manifest(package_ref)
    if MODEL_ROLE not in manifest.content.inputs:
        return Parent(reason="its package names no trained network")
    try:
        ref = catalog.resolve(manifest.provenance.input_uris[MODEL_ROLE])
        if ref.digest != manifest.content.inputs[MODEL_ROLE]:
            return Parent(reason=f"another network stands where {ref.uri} was trained")
        fetch_weights(catalog, ref, folder, [MODEL_FILE])
        return _built(folder, width)
    except (NotFound, DataError, DigestMismatch, ConfigError) as failure:
        return Parent(reason=str(failure))


def _built(folder: Path, width: int) -> Parent:
    from modelyard.models.build import load_model  # torch: seconds, and only where there are weights
    from modelyard.models.config import ModelSpec

    spec = ModelSpec.model_validate_json((folder / MODEL_FILE).read_bytes())
    if spec.input_width != width:
        return Parent(reason=f"the trained network takes {spec.input_width} inputs, the package {width}")
    return Parent(load_model(folder))
