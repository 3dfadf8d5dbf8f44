"""Signs artifacts. Only the process that rolls out calls this: it alone holds the private key."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from modelyard.artifacts import ArtifactRef
from modelyard.errors import NotFound, SignatureRefused
from modelyard.settings import Settings
from modelyard.signing.keys import key_id, private_key
from modelyard.signing.verify import MANIFEST_FILE, SIGNATURES_FOLDER, verify
from modelyard.storage import Store

log = logging.getLogger(__name__)


def sign_release(store: Store, settings: Settings, *artifacts: ArtifactRef) -> None:
    """Sign what passed its gate; what this key signed already is left as it is.

    An installation whose endpoint asks for no signatures may have no key: then nothing is signed.

    Raises:
        ConfigError: there is no usable private key.
    """
    if settings.endpoint_signatures == "off" and not settings.signing_key_file.is_file():
        log.warning("nothing is signed: the endpoint asks for no signatures, and there is no key")
        return
    for artifact in artifacts:
        sign(store, artifact, settings.signing_key_file)


def sign(store: Store, artifact: ArtifactRef, key_file: Path) -> str:
    """Sign the exact bytes of an artifact's manifest; returns the URI of the signature.

    Raises:
        ConfigError: the private key cannot be used.
        NotFound: nothing is committed there.
    """
    public = private_key(key_file).public_key()
    uri = f"{artifact.uri}/{SIGNATURES_FOLDER}/{key_id(public)}.json"
    manifest = store.get(f"{artifact.uri}/{MANIFEST_FILE}")
    try:
        verify(manifest, {key_id(public): store.get(uri)}, {key_id(public): public})
    except (NotFound, SignatureRefused):
        store.put(uri, _bundle(manifest, key_file))
        log.info("signed %s with %s", artifact, key_id(public)[:12])
    return uri


def _bundle(manifest: bytes, key_file: Path) -> bytes:
    """A Sigstore bundle of `model-signing` over a model that consists of the manifest."""
    from model_signing import hashing, signing

    with tempfile.TemporaryDirectory(prefix="modelyard-sign-") as scratch:
        model, signature = Path(scratch, MANIFEST_FILE), Path(scratch, "signature.json")
        model.write_bytes(manifest)
        config = signing.Config().use_elliptic_key_signer(private_key=key_file)
        config.set_hashing_config(hashing.Config().use_file_serialization(hashing_algorithm="sha256"))
        config.sign(model, signature)
        return signature.read_bytes()
