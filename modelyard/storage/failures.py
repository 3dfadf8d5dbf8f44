"""The clients' exceptions as ours, with the URI in the sentence."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError

from modelyard.errors import NotFound, ObjectChanged, StoreRefused, StoreUnavailable

REFUSALS = ("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "403 Forbidden", "401 Unauthorized")


class Translated:
    """A context in which obstore's exceptions become ours. A class, as a generator costs 1 us for each object."""

    __slots__ = ("_uri",)

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(failure, BaseError | OSError):
            raise _translation(self._uri, failure) from failure


def _translation(uri: str, failure: Exception) -> NotFound | ObjectChanged | StoreRefused | StoreUnavailable:
    text = str(failure)
    if "NoSuchBucket" in text:  # of a listing it arrives as a generic error
        return StoreRefused(f"{uri}: the bucket does not exist")
    if isinstance(failure, FileNotFoundError):
        return NotFound(f"{uri}: no such object")
    if isinstance(failure, PreconditionError):
        return ObjectChanged(f"{uri}: replaced while it was read; try again")
    if isinstance(failure, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return StoreRefused(f"{uri}: the store refused the credentials ({_first_line(failure)})")
    # What follows arrives as a generic error with the answer in its text: a listing that is refused, for one.
    if any(word in text for word in REFUSALS):
        return StoreRefused(f"{uri}: the store refused the credentials")
    return _untrusted(uri) if "InvalidCertificate" in text else StoreUnavailable(f"{uri}: {_first_line(failure)}")


@contextmanager
def control_translated(uri: str) -> Generator[None]:
    """A context in which botocore's exceptions become ours."""
    from botocore.exceptions import BotoCoreError, ClientError, SSLError

    try:
        yield
    except SSLError as failure:
        raise _untrusted(uri) from failure
    except (BotoCoreError, OSError) as failure:
        raise StoreUnavailable(f"{uri}: {_first_line(failure)}") from failure
    except ClientError as failure:
        status = failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (401, 403):
            raise StoreRefused(f"{uri}: the store refused the credentials ({_first_line(failure)})") from failure
        kind = StoreRefused if 400 <= status < 500 and status not in (408, 429) else StoreUnavailable
        raise kind(f"{uri}: {_first_line(failure)}") from failure


def _untrusted(uri: str) -> StoreRefused:
    return StoreRefused(
        f"{uri}: the certificate of the store is not trusted; MODELYARD_S3_CA_BUNDLE names a file with its authority's"
    )


def _first_line(failure: BaseException) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
