"""Object storage URIs."""

from __future__ import annotations

from modelyard.errors import StoreRefused

SCHEME = "s3://"


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` -> ``("bucket", "a/b")``.

    Raises:
        StoreRefused: the URI is not of that form.
    """
    bucket, _, key = uri[len(SCHEME) :].partition("/")
    if not bucket or not uri.startswith(SCHEME):
        raise StoreRefused(f"{uri!r} is not an object storage URI; write s3://<bucket>/<key>")
    return bucket, key.lstrip("/")
