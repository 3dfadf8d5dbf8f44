"""What a person who mistyped a name needs to read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BeforeValidator

MOST_LISTED = 40


def nearest(name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not known: the known one that is closest, and all of them, or of very many the closest."""
    lowered = {one.lower(): one for one in reversed(known)}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"; did you mean {lowered[close[0]]!r}?" if close else "."
    if len(known) <= MOST_LISTED:
        return f"{name!r} is not known{hint} There are {', '.join(known)}"
    alike = difflib.get_close_matches(name.lower(), lowered, n=5, cutoff=0.0)
    return f"{name!r} is not known{hint} There are {len(known)}, {', '.join(lowered[one] for one in alike)} among them"


def one_of(names: Any) -> BeforeValidator:
    """For a field of a `Literal` type: a wrong name is answered by `nearest`."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in get_args(names):
            raise ValueError(nearest(value, get_args(names)))
        return value

    return BeforeValidator(check)
