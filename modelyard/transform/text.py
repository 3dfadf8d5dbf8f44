"""A column of texts as the tokens of a network that others trained: its own tokenizer, kept as data.

A row is the numbers of a text's tokens, and `NO_TOKEN` behind the last one; rows of several texts are as wide as the
longest. `FittedTransform` is the other sort of transform, and has the same methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import DataError
from modelyard.token_labels import Subwords
from modelyard.transform.config import PaddingName
from modelyard.transform.features import plain_text

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Encoding, Tokenizer

NO_TOKEN = -1
PORTION_TOKENS = 16_384  # computed at once: some 200 MB in a network like MiniLM
TOKEN_CHARACTERS = (
    64  # of a token, spaces around it included: few languages have such words, and runs of spaces end there
)
ALIKE_TOKENS = 16  # texts up to this length are computed together, longer ones with those up to twice as long


class TextTransform(Frozen):
    """From a text to the tokens of a network: `transform.json` of a data set with a column of type text.

    Attributes:
        max_length: tokens of a row at most, marks of beginning and end included; the rest of a text is cut off.
        padding: ``longest``: rows are as wide as the longest text they come with; ``fixed``: always `max_length`.
        pad: number of the token that stands for none where a program must have one.
        mask: number of the token that stands for one that is to be foretold; None: the tokenizer has none.
        subwords: for token classification: which tokens of a word carry a tag.
        vocabulary: how many tokens there are.
        tokenizer: `tokenizer.json` as Hugging Face's `tokenizers` writes it, without any padding or cutting off.
    """

    kind: Literal["text"] = "text"
    column: str
    max_length: int = Field(ge=1)
    padding: PaddingName = "longest"
    pad: int = Field(ge=0)
    mask: int | None = None
    subwords: Subwords = "first"
    vocabulary: int = Field(ge=1)
    tokenizer: str = Field(repr=False)

    @property
    def columns(self) -> list[str]:
        return [self.column]

    @property
    def width(self) -> int:
        """Tokens of a row at most."""
        return self.max_length

    @property
    def takes_plain_numbers(self) -> bool:
        return False

    @property
    def max_characters(self) -> int:
        """Of a text, at most, before it is told into tokens: nobody shall wait for the end of a text that is cut off."""
        return self.max_length * TOKEN_CHARACTERS

    @cached_property
    def tokenizer_sha256(self) -> str:
        return hashlib.sha256(self.tokenizer.encode()).hexdigest()

    @cached_property
    def reader(self) -> Tokenizer:
        """The tokenizer, cutting off at `max_length`."""
        from tokenizers import Tokenizer

        reader = Tokenizer.from_str(self.tokenizer)
        reader.enable_truncation(self.max_length)
        return reader

    def rows(self, columns: Mapping[str, Sequence[Any] | np.ndarray] | pd.DataFrame) -> np.ndarray:
        """Raw columns by name to rows of tokens (n, t), int64, `NO_TOKEN` behind the end of a text; further columns do
        not matter.

        Raises:
            DataError: the column is missing, or has no value in some row.
        """
        if self.column not in columns:
            raise DataError(f"columns are missing: {self.column}")
        return self.tokens(list(columns[self.column]))

    def tokens(self, texts: Sequence[Any]) -> np.ndarray:
        """Texts to rows of tokens, as `rows`."""
        plain = [plain_text(text)[: self.max_characters] for text in texts]
        missing = [number for number, text in enumerate(texts) if text is None or text != text]  # noqa: PLR0124 (NaN)
        if missing:
            raise DataError(f"column {self.column!r} has no text in row {missing[0]}")
        return padded([encoding.ids for encoding in self._encodings(plain)])

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Rows of tokens to network input.

        Args:
            rows: (n, t) of any real dtype, as `rows` makes them.

        Returns:
            (n, t) int64, as wide as `padding` says.

        Raises:
            DataError: another shape, more tokens than `max_length`, a number that is no token, or a row without any.
        """
        if rows.ndim != 2 or not rows.shape[1]:
            raise DataError(f"expected rows of tokens (n, t), got shape {rows.shape}")
        tokens = trimmed(rows.astype(np.int64, copy=False))
        if tokens.shape[1] > self.max_length:
            raise DataError(f"a row has {tokens.shape[1]} tokens, the model reads {self.max_length} at most")
        if len(tokens) and (tokens.min() < NO_TOKEN or tokens.max() >= self.vocabulary):
            raise DataError(f"a token's number lies outside 0..{self.vocabulary - 1}")
        if len(tokens) and (tokens < 0).all(axis=1).any():
            raise DataError("a row has no token")
        if self.padding == "fixed":
            return np.pad(tokens, ((0, 0), (0, self.max_length - tokens.shape[1])), constant_values=NO_TOKEN)
        return tokens

    def apply_columns(self, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> np.ndarray:
        """Raw columns by name to network input: `rows`, then `apply`."""
        return self.apply(self.rows(columns))

    def apply_frame(self, frame: pd.DataFrame) -> np.ndarray:
        """The same for a frame."""
        return self.apply(self.rows(frame))

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """Each text's tokens with the places in the text where they stand."""
        return self.reader.encode_batch([text[: self.max_characters] for text in texts])

    def pieces(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """The tokens of each text, none cut off: where it has more than `max_length`, in several pieces, each with its marks
        of beginning and end."""
        whole = self.reader.encode_batch(list(texts))
        return [[piece.ids for piece in (encoding, *encoding.overflowing)] for encoding in whole]

    @cached_property
    def marks(self) -> frozenset[int]:
        """Numbers of the tokens that stand for no part of a text."""
        return frozenset(number for number, token in self.reader.get_added_tokens_decoder().items() if token.special)

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        return self.reader.encode_batch_fast(texts)


def padded(rows: Sequence[Sequence[int] | np.ndarray], width: int | None = None) -> np.ndarray:
    """Tokens of several texts as one array (n, t), int64: as wide as the longest, at least 1, or as said."""
    longest = max((len(row) for row in rows), default=1)
    array = np.full((len(rows), width or max(longest, 1)), NO_TOKEN, dtype=np.int64)
    for number, row in enumerate(rows):
        array[number, : len(row)] = row
    return array


def trimmed(rows: np.ndarray) -> np.ndarray:
    """Rows (n, t) without the columns at the end in which none has a token; at least one is left."""
    used = np.flatnonzero((rows >= 0).any(axis=0))
    return rows[:, : int(used[-1]) + 1] if len(used) else rows[:, :1]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows (n, width) of several arrays in one; of tokens (int64) the narrower ones are filled up."""
    widths = {part.shape[1] for part in parts if part.ndim == 2}
    if len(widths) < 2:
        return np.concatenate(parts)
    widest = max(widths)
    fill = [np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=NO_TOKEN) for part in parts]
    return np.concatenate(fill)


def portions(rows: np.ndarray, tokens: int = PORTION_TOKENS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of tokens (n, t), some at a time: short ones together and long ones together, so that little is computed for
    places without a token.

    Yields:
        Numbers of the rows (m,), and their tokens (m, s), as narrow as they can be; m * s is at most ``tokens`` unless m
        is 1.
    """
    lengths = rows.shape[1] - (rows[:, ::-1] >= 0).argmax(axis=1)
    order, begin = np.argsort(lengths, kind="stable"), 0
    while begin < len(order):
        longest, end = max(2 * int(lengths[order[begin]]), ALIKE_TOKENS), begin + 1
        while (
            end < len(order)
            and (length := int(lengths[order[end]])) <= longest
            and length * (end + 1 - begin) <= tokens
        ):
            end += 1
        chosen = order[begin:end]
        yield chosen, np.ascontiguousarray(rows[chosen, : int(lengths[chosen[-1]])])
        begin = end
