"""What goes back to a client: status, headers, content."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

Header = tuple[bytes, bytes]
Headers = list[Header]

JSON: Header = (b"content-type", b"application/json")
CLOSE: Header = (b"connection", b"close")
AGAIN: Header = (b"retry-after", b"1")  # seconds


class HttpError(Exception):
    """An answer other than 200, raised where it is decided."""

    def __init__(self, status: int, sentence: str, headers: Iterable[Header] = ()) -> None:
        self.status = status
        self.sentence = sentence
        self.headers = list(headers)
        super().__init__(sentence)


@dataclass(slots=True)
class Answer:
    """A whole response but for what only the connection knows (its length, whether it closes)."""

    status: int
    content: bytes
    headers: Headers = field(default_factory=lambda: [JSON])


def as_json(status: int, document: Any, headers: Iterable[Header] = ()) -> Answer:
    return Answer(status, orjson.dumps(document), [JSON, *headers])


def refusal(error: HttpError, lineage: Headers) -> Answer:
    return as_json(error.status, {"error": error.sentence}, [*error.headers, *lineage])
