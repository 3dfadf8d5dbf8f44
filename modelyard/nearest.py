"""What a person who mistyped a name needs to read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BeforeValidator


def nearest(name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not known: the known one that is closest, and all of them."""
    lowered = {one.lower(): one for one in reversed(known)}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"; did you mean {lowered[close[0]]!r}?" if close else "."
    return f"{name!r} is not known{hint} There are {', '.join(known)}"


def one_of(names: Any) -> BeforeValidator:
    """For a field of a `Literal` type: a wrong name is answered by `nearest`."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in get_args(names):
            raise ValueError(nearest(value, get_args(names)))
        return value

    return BeforeValidator(check)
