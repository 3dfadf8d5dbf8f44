"""The three clients, made from settings."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from obstore.store import S3Store

from modelyard.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

# Stores that ignore If-None-Match and have a header of their own for "fail if it exists".
CREATE_ONLY_HEADERS = {
    "oss": {"x-oss-forbid-overwrite": "true"},
    "cos": {"x-cos-forbid-overwrite": "true"},
}


def connect(settings: Settings, bucket: str, *, create_only: bool) -> S3Store:
    """obstore's client of one bucket; ``create_only`` for stores whose "fail if it exists" is a header of theirs."""
    bound = timedelta(seconds=settings.s3_timeout_seconds)
    client: ClientConfig = {
        "allow_http": settings.store_url.startswith("http://"),
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": bound,
        # The whole of one request; a part is 16 MB, so this admits a link of 0.5 MB/s at the default.
        "timeout": bound,
    }
    if create_only:
        client["default_headers"] = CREATE_ONLY_HEADERS[settings.s3_create_only]
    if settings.s3_ca_bundle:
        client["root_certificate"] = settings.s3_ca_bundle.read_bytes()
    config: S3Config = {
        "endpoint": settings.store_url,
        "region": settings.s3_region,
        "virtual_hosted_style_request": settings.s3_addressing == "virtual",
    }
    if settings.s3_encryption:
        config["server_side_encryption"] = settings.s3_encryption
    if settings.s3_kms_key_id:
        config["sse_kms_key_id"] = settings.s3_kms_key_id
    if settings.s3_access_key and settings.s3_secret_key:
        config["access_key_id"] = settings.s3_access_key
        config["secret_access_key"] = settings.s3_secret_key.get_secret_value()
    return S3Store(
        bucket,
        config=config,
        client_options=client,
        retry_config={"max_retries": 4, "retry_timeout": 2 * bound},
    )


def connect_control(settings: Settings) -> Any:
    """boto3's client."""
    import boto3
    from botocore.config import Config

    secret = settings.s3_secret_key
    return boto3.client(
        "s3",
        endpoint_url=settings.store_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        verify=str(settings.s3_ca_bundle) if settings.s3_ca_bundle else None,
        config=Config(**_botocore_options(settings)),
    )


def filesystem_options(settings: Settings, *, with_credentials: bool) -> dict[str, Any]:
    """Arguments for s3fs. Without credentials they may be stored: botocore then finds its own."""
    client: dict[str, Any] = {"region_name": settings.s3_region}
    if settings.s3_ca_bundle:
        client["verify"] = str(settings.s3_ca_bundle)
    options: dict[str, Any] = {
        "endpoint_url": settings.store_url,
        "client_kwargs": client,
        "config_kwargs": _botocore_options(settings),
        "use_listings_cache": False,
    }
    if settings.s3_encryption:
        options["s3_additional_kwargs"] = encryption_arguments(settings)
    if with_credentials and settings.s3_access_key and settings.s3_secret_key:
        options |= {
            "key": settings.s3_access_key,
            "secret": settings.s3_secret_key.get_secret_value(),
        }
    return options


def _botocore_options(settings: Settings) -> dict[str, Any]:
    return {
        "s3": {"addressing_style": settings.s3_addressing},
        # Newer botocore adds checksums that many S3-compatible stores refuse.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "connect_timeout": 5,
        "read_timeout": settings.s3_timeout_seconds,
        "retries": {"max_attempts": 4, "mode": "standard"},
    }


def encryption_arguments(settings: Settings) -> dict[str, str]:
    """What a write through boto3 or s3fs says of encryption; nothing where the store is to decide."""
    if not settings.s3_encryption:
        return {}
    arguments = {"ServerSideEncryption": str(settings.s3_encryption)}
    if settings.s3_kms_key_id:
        arguments["SSEKMSKeyId"] = settings.s3_kms_key_id
    return arguments
