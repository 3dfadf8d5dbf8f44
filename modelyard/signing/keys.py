"""Keys on an elliptic curve, as PEM files: one private key that signs, a folder of public keys that are trusted.

A key's id is the sha256 of its public PEM: the name of its file, of its signatures, and the hint within a bundle.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those of the Sigstore bundle


def create_key(private_file: Path, trusted: Path) -> str:
    """Make a key pair (NIST P-256): the private half in a file of mode 0600, the public one among the trusted.

    An earlier private key is replaced; what it signed stays valid while its public half is trusted.

    Returns:
        The new key's id.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    body = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    private_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = private_file.with_name(f"{private_file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(body)
    # Trusted first: a signature must never be there before the endpoint could know its key.
    made = trust(public_pem(private.public_key()), trusted)
    fresh.replace(private_file)
    return made


def trust(public: bytes, trusted: Path) -> str:
    """Put a public key (PEM) among the trusted; returns its id."""
    key_id = hashlib.sha256(public).hexdigest()
    trusted.mkdir(parents=True, exist_ok=True)
    partial = trusted / f"{key_id}.partial"
    partial.write_bytes(public)
    partial.replace(trusted / f"{key_id}.pem")
    return key_id


def distrust(start: str, trusted: Path) -> str:
    """Take a public key, named by its id or a start of it, from the trusted; returns its id.

    Raises:
        NotFound: no key, or several, begin like that.
    """
    matching = [path for path in key_files(trusted) if path.stem.startswith(start)]
    if len(matching) != 1:
        known = ", ".join(path.stem[:12] for path in key_files(trusted)) or "none"
        raise NotFound(f"{len(matching)} trusted keys begin with {start!r}; there are: {known}")
    matching[0].unlink()
    return matching[0].stem


def key_files(trusted: Path) -> list[Path]:
    """The trusted public keys, by name."""
    return sorted(trusted.glob("*.pem"))


def trusted_keys(trusted: Path) -> dict[str, EllipticCurvePublicKey]:
    """The trusted public keys by their ids; whatever their files are called.

    Raises:
        ConfigError: a file that is no such key.
    """
    keys = (_public_key(path) for path in key_files(trusted))
    return {key_id(key): key for key in keys}


def private_key(path: Path) -> EllipticCurvePrivateKey:
    """The key that signs.

    Raises:
        ConfigError: it is absent, readable by others than its owner, or no such key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    setting = "MODELYARD_SIGNING_KEY"
    try:
        mode, body = path.stat().st_mode, path.read_bytes()
    except OSError as failure:
        raise ConfigError(setting, f"there is no key to sign with: {failure}; `modelyard up` makes one") from None
    if mode & 0o077:
        raise ConfigError(setting, f"{path} can be read by others than its owner; chmod 600 it, or make another key")
    try:
        key = serialization.load_pem_private_key(body, None)
    except (ValueError, TypeError) as failure:
        raise ConfigError(setting, f"{path} is no private key without a password: {failure}") from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise ConfigError(setting, f"{path} is not a key on one of the curves {', '.join(CURVES)}")
    return key


def public_pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: EllipticCurvePublicKey) -> str:
    return hashlib.sha256(public_pem(key)).hexdigest()


def _public_key(path: Path) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    setting = "MODELYARD_TRUSTED_KEYS"
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as failure:
        raise ConfigError(setting, f"{path} is no public key: {failure}") from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ConfigError(setting, f"{path} is not a key on one of the curves {', '.join(CURVES)}")
    return key
