"""Checks that a manifest was signed by somebody who is trusted.

A signature is a Sigstore bundle (v0.3, key mode) around a DSSE envelope (https://github.com/secure-systems-lab/dsse)
around an in-toto statement of OpenSSF's `model-signing` about one file. `model-signing` itself reads it too; checking with
`cryptography` alone takes 0.03 s instead of 0.6, and accepts less: one form of envelope, one hash, one file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import SignatureRefused
from modelyard.signing.keys import trusted_keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

MANIFEST_FILE = "manifest.json"
SIGNATURES_FOLDER = "signatures"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_BUNDLE_BYTES = 2**16


def verify_folder(folder: Path, trusted: Path) -> str:
    """Check an artifact's local copy: its manifest against the signatures beside it.

    Returns:
        The id of the trusted key that signed it.

    Raises:
        SignatureRefused: unsigned, signed by nobody who is trusted, or altered.
        ConfigError: a trusted key cannot be read.
    """
    keys = trusted_keys(trusted)
    bundles = {path.stem: path.read_bytes() for path in sorted((folder / SIGNATURES_FOLDER).glob("*.json"))}
    return verify((folder / MANIFEST_FILE).read_bytes(), bundles, keys)


def verify(manifest: bytes, bundles: Mapping[str, bytes], keys: Mapping[str, EllipticCurvePublicKey]) -> str:
    """Check the exact bytes of a manifest against its signatures, by id of their keys; returns the id that convinced.

    Raises:
        SignatureRefused: none of them does; says why.
    """
    if not keys:
        raise SignatureRefused("no public key is trusted: MODELYARD_TRUSTED_KEYS names a folder without any")
    if not bundles:
        raise SignatureRefused("it is unsigned; a rollout signs, or `modelyard signing sign` by hand")
    known = {key_id: body for key_id, body in bundles.items() if key_id in keys}
    if not known:
        signers = ", ".join(key_id[:12] for key_id in bundles)
        raise SignatureRefused(f"it is signed by {signers}, which is not trusted")
    reasons = []
    for key_id, body in known.items():
        try:
            _check(manifest, body, keys[key_id])
        except SignatureRefused as refused:
            reasons.append(f"the signature of {key_id[:12]} {refused}")
        else:
            return key_id
    raise SignatureRefused("; ".join(reasons))


def _check(manifest: bytes, bundle: bytes, key: EllipticCurvePublicKey) -> None:
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise SignatureRefused(f"is longer than {MAX_BUNDLE_BYTES} bytes")
    try:
        envelope = json.loads(bundle)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        [signature] = [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]]
        is_statement = envelope["payloadType"] == PAYLOAD_TYPE
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SignatureRefused("is not a bundle with one signature") from None
    if not is_statement:
        raise SignatureRefused(f"is not about a statement of the type {PAYLOAD_TYPE}")
    _check_signature(payload, signature, key)
    _check_statement(manifest, payload)


def _check_signature(payload: bytes, signature: bytes, key: EllipticCurvePublicKey) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    algorithm = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}[key.curve.key_size]()
    signed = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    try:
        key.verify(signature, signed, ECDSA(algorithm))
    except InvalidSignature:
        raise SignatureRefused("was not made by that key, or was altered") from None


def _check_statement(manifest: bytes, payload: bytes) -> None:
    """The statement must be about one file, and these bytes must be that file."""
    try:
        statement = json.loads(payload)
        [resource] = statement["predicate"]["resources"]
        about = statement["predicateType"], resource["algorithm"], resource["digest"]
    except (ValueError, KeyError, TypeError):
        raise SignatureRefused("is not about one file") from None
    if about[:2] != (PREDICATE_TYPE, "sha256"):
        raise SignatureRefused(f"is of another kind: {about[0]} over {about[1]}")
    actual = hashlib.sha256(manifest).hexdigest()
    if about[2] != actual:
        raise SignatureRefused(
            f"is for a {MANIFEST_FILE} with the sha256 {about[2]}, not {actual}: it was altered since"
        )
