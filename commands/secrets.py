"""The installation's secrets: made once, kept in `<home>/secrets` (0700) as files of mode 0600, never shown.

`signing-key.pem` signs what rollout lets through; its public half lies in `<home>/trusted-keys`.
`modelyard_<field>` files are read back by `modelyard.settings`; the AWS files serve boto, s3fs and MLflow; the
identities and `security.toml` are what the embedded store itself reads.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from uuid import uuid4

from pydantic import SecretStr

from modelyard.settings import Settings

SECRET_FIELDS = frozenset({"s3_access_key", "s3_secret_key", "endpoint_admin_token"})
AWS_CREDENTIALS = "aws-credentials"
AWS_CONFIG = "aws-config"
STORE_IDENTITIES = "store-identities.json"
STORE_SECURITY = "security.toml"
# Signing keys without which SeaweedFS lets anybody read and write through its filer and volume ports.
JWT_SECTIONS = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")


def ensure(settings: Settings, *, store_is_running: bool) -> Settings:
    """Settings with every secret present, and the files that hold them.

    A running embedded store keeps the identity it was started with: whoever then brings another secret is refused
    by the store, not silently given a new identity.
    """
    settings.secrets_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.secrets_folder.chmod(0o700)
    complete = settings.model_copy(update=_missing(settings))
    _write_fields(complete, only_new=store_is_running)
    if complete.s3_access_key and complete.s3_secret_key and not store_is_running:
        _write_aws_files(complete)
        _write_store_files(complete)
    _ensure_signing_key(complete)
    return complete


def write_private(path: Path, text: str) -> None:
    """Write a file only its owner can read; readers see the old one or the new one, whole."""
    if path.is_file() and path.read_text() == text:
        return
    fresh = path.with_name(f".{path.name}.{uuid4().hex}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)


def _ensure_signing_key(settings: Settings) -> None:
    """A key for rollout to sign with, unless somebody brings theirs; the endpoint trusts it either way."""
    from modelyard.signing import keys

    private_file, trusted = settings.signing_key_file, settings.trusted_keys_folder
    if settings.signing_key is None and not private_file.exists():
        keys.create_key(private_file, trusted)
    elif settings.trusted_keys is None and not keys.key_files(trusted) and private_file.exists():
        keys.trust(keys.public_pem(keys.private_key(private_file).public_key()), trusted)


def _missing(settings: Settings) -> dict[str, object]:
    """Secrets nobody chose. An outside store's credentials are never invented."""
    made: dict[str, object] = {}
    if not settings.endpoint_admin_token:
        made["endpoint_admin_token"] = SecretStr(secrets.token_urlsafe(32))
    if not settings.s3_endpoint_url and not (settings.s3_access_key and settings.s3_secret_key):
        made["s3_access_key"] = "MODELYARD" + secrets.token_hex(6).upper()
        made["s3_secret_key"] = SecretStr(secrets.token_urlsafe(32))
    return made


def _write_fields(settings: Settings, *, only_new: bool) -> None:
    for field in SECRET_FIELDS:
        value = getattr(settings, field)
        path = settings.secrets_folder / f"modelyard_{field}"
        if value and not (only_new and path.exists()):
            write_private(path, value.get_secret_value() if isinstance(value, SecretStr) else value)


def _write_aws_files(settings: Settings) -> None:
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
    write_private(
        settings.secrets_folder / AWS_CREDENTIALS,
        f"[default]\naws_access_key_id = {settings.s3_access_key}\naws_secret_access_key = {secret}\n",
    )
    write_private(
        settings.secrets_folder / AWS_CONFIG,
        f"[default]\nregion = {settings.s3_region}\nendpoint_url = {settings.store_url}\n"
        # Newer botocore adds checksums that many S3-compatible stores refuse.
        "request_checksum_calculation = when_required\nresponse_checksum_validation = when_required\n"
        f"s3 =\n    addressing_style = {settings.s3_addressing}\n",
    )


def _write_store_files(settings: Settings) -> None:
    if settings.s3_endpoint_url:
        return
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
    identity = {
        "name": "modelyard",
        "credentials": [{"accessKey": settings.s3_access_key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_private(settings.secrets_folder / STORE_IDENTITIES, json.dumps({"identities": [identity]}))
    security = settings.secrets_folder / STORE_SECURITY
    if not security.exists():
        keys = (f'[{section}]\nkey = "{secrets.token_urlsafe(32)}"\n' for section in JWT_SECTIONS)
        write_private(security, "\n".join(keys))
