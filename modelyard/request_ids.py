"""Names of the endpoint's answers: `Modelyard-Request-Id` says who answered, from which revision.

default.42.digits.7.5c0ffee1-2f    endpoint, revision, model, version; then the router's boot and a count, in hex
default.42.5c0ffee1-2f             nobody answered: the request was refused before a version was drawn
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

# An endpoint's name holds no dot, a revision is a number, a version's dots are escaped: so only one reading fits.
_FORM = re.compile(r"([a-z0-9][a-z0-9-]*)\.(\d+)\.(?:(.+)\.([^.]+)\.)?([0-9a-f]{8}-[0-9a-f]+)")


@dataclass(frozen=True, kw_only=True)
class RequestId:
    """What a request id says; model and version are None where nobody answered."""

    endpoint: str
    revision: int
    model: str | None
    version: str | None


def prefix(endpoint: str, revision: int, served: tuple[str, str] | None, boot: str) -> str:
    """The part of the ids of one router's answers by one version, (model, version), that a count follows."""
    names = [quote(served[0]), quote(served[1]).replace(".", "%2E")] if served else []
    return ".".join([endpoint, str(revision), *names, f"{boot}-"])


def parse(text: str) -> RequestId | None:
    """What a request id says; None for a text that is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    endpoint, revision, model, version, _ = found.groups()
    return RequestId(
        endpoint=endpoint,
        revision=int(revision),
        model=unquote(model) if model else None,
        version=unquote(version) if version else None,
    )
