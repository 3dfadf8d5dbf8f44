"""What a person who mistyped a name needs to read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not known: the known one that is closest, and all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{name!r} is not known; {hint}There are {', '.join(known)}"
