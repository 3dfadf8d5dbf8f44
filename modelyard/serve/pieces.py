"""A request of many rows, asked for a piece at a time: whoever comes after it has a turn between its pieces."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from modelyard.serve.wire import Tensor

PIECE_BYTES = 2**17  # 16,384 tokens, half a second of a small transformer; of quick models some tens of rows


class Waiting(Protocol):
    """Who waits for answers. Called back instead of a future: that would be one more turn of the loop for each."""

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more: its client may have run out of time."""
        ...

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        """Rows [begin, end) of these answers are its own."""
        ...

    def failed(self, failure: Exception) -> None: ...


class Whole:
    """Who waits for all rows of a large request."""

    def __init__(self, waiting: Waiting, rows: np.ndarray) -> None:
        self.has_failed = False
        self._waiting = waiting
        self._rows = rows
        self._size = piece_rows(rows)
        self._found: dict[int, dict[str, Tensor]] = {}

    @property
    def is_over(self) -> bool:
        return self.has_failed or self._waiting.is_over

    def piece(self, begin: int = 0) -> tuple[np.ndarray, Piece]:
        """The rows from ``begin`` on, as many as are asked for at once, and who waits for them."""
        return self._rows[begin : begin + self._size], Piece(self, begin, min(begin + self._size, len(self._rows)))

    def following(self, piece: Piece) -> tuple[np.ndarray, Piece] | None:
        return self.piece(piece.end) if piece.end < len(self._rows) else None

    def bytes_behind(self, piece: Piece) -> int:
        """Of the rows that are not asked for once this piece is."""
        return self._rows[piece.end :].nbytes

    def take(self, begin: int, answers: dict[str, Tensor]) -> None:
        """The answers for a piece; with the last one the whole is answered."""
        self._found[begin] = answers
        if len(self._found) * self._size >= len(self._rows) and not self.is_over:
            parts = [self._found[place] for place in sorted(self._found)]
            self._waiting.answered(
                {name: _together([part[name] for part in parts]) for name in parts[0]}, 0, len(self._rows)
            )

    def fail(self, failure: Exception) -> None:
        if not self.is_over:
            self.has_failed = True
            self._waiting.failed(failure)


class Piece:
    """Who waits for rows [begin, end) of a large request."""

    def __init__(self, whole: Whole, begin: int, end: int) -> None:
        self.whole = whole
        self.begin = begin
        self.end = end

    @property
    def is_over(self) -> bool:
        return self.whole.is_over

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        self.whole.take(self.begin, {name: tensor[begin:end] for name, tensor in answers.items()})

    def failed(self, failure: Exception) -> None:
        self.whole.fail(failure)


def piece_rows(rows: np.ndarray) -> int:
    """How many of these rows make a piece."""
    return max(1, PIECE_BYTES * len(rows) // max(1, rows.nbytes))


def _together(parts: list[Tensor]) -> Tensor:
    texts: list[str] = []
    arrays: list[np.ndarray] = []
    for part in parts:
        if isinstance(part, list):
            texts += part
        else:
            arrays.append(part)
    return np.concatenate(arrays) if arrays else texts
