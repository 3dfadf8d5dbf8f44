"""What is done to a bucket rather than to an object: creating it, and sweeping what broken uploads left.

boto3 costs 0.5 s and 30 MB to import, which a command line, a rank and the endpoint do without: it is imported by the
first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from modelyard.settings import Settings
from modelyard.storage.clients import connect_control
from modelyard.storage.failures import control_translated
from modelyard.storage.uris import split_uri


@dataclass(frozen=True, kw_only=True)
class StaleUpload:
    """A multipart upload that somebody began and nobody finished."""

    uri: str
    upload_id: str
    started: datetime


class ControlPlane:
    """The installation's bucket as a whole.

    Every method raises `StoreUnavailable` for what may pass and `StoreRefused` for what will not.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uri = f"s3://{settings.bucket}"

    def create_bucket(self) -> None:
        """Create the installation's bucket unless it exists."""
        from botocore.exceptions import ClientError

        with control_translated(self._uri):
            try:
                connect_control(self._settings).create_bucket(Bucket=self._settings.bucket)
            except ClientError as failure:
                if failure.response["Error"]["Code"] not in {
                    "BucketAlreadyOwnedByYou",
                    "BucketAlreadyExists",
                }:
                    raise

    def stale_uploads(self, older_than: timedelta) -> Sequence[StaleUpload]:
        """Multipart uploads of the installation's bucket begun longer ago than ``older_than``."""
        bucket, limit, found = self._settings.bucket, datetime.now(UTC) - older_than, []
        with control_translated(self._uri):
            for page in connect_control(self._settings).get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] < limit:
                        uri = f"s3://{bucket}/{upload['Key']}"
                        found.append(StaleUpload(uri=uri, upload_id=upload["UploadId"], started=upload["Initiated"]))
        return found

    def abort_upload(self, upload: StaleUpload) -> None:
        bucket, key = split_uri(upload.uri)
        with control_translated(upload.uri):
            connect_control(self._settings).abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload.upload_id)
