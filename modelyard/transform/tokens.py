"""Texts as tokens: a byte-level BPE that is fitted on the training split, and sequences packed from what it makes.

The tokenizer is data (`tokenizer.json`, as Hugging Face's `tokenizers` writes it), and loses nothing: every text comes
back byte for byte (Sennrich et al. 2016, arXiv 1508.07909; on bytes as in Radford et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import DataError
from modelyard.transform.config import TokenConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"  # behind each text; a text may not contain it
TOKENIZER_FILE = "tokenizer.json"


class TokenTransform(Frozen):
    """What becomes of a column of texts: `transform.json` of a data set for language modelling.

    Attributes:
        sequence_length: tokens a sequence.
        vocabulary: number of tokens.
        end: number of the token behind each text.
        tokenizer_sha256: of `tokenizer.json`.
    """

    kind: Literal["tokens"] = "tokens"
    column: str
    sequence_length: int = Field(ge=2)
    vocabulary: int = Field(ge=2)
    end: int = Field(ge=0)
    tokenizer_sha256: str

    @property
    def columns(self) -> list[str]:
        return [self.column]

    @property
    def width(self) -> int:
        """Tokens a row of network input."""
        return self.sequence_length


def fit_tokenizer(texts: Iterable[str], config: TokenConfig) -> Tokenizer:
    """A byte-level BPE with at most ``config.vocabulary`` tokens, all 256 bytes and the end of a text among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[int]:
    """How many bytes of text each token stands for; 0 for the end of a text."""
    names = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [0 if name == END else len(name) for name, _ in names]  # byte-level: a character of a name is a byte


class Packer:
    """Packs a stream of texts into sequences of one length, so that every token but the first is predicted once.

    A sequence has one token more than the network sees at a time: its last is the next one's first. The rest of the last
    sequence is `filler`.
    """

    def __init__(self, tokenizer: Tokenizer, sequence_length: int) -> None:
        self._tokenizer, self._length = tokenizer, sequence_length
        self._end = tokenizer.get_vocab()[END]
        self._waiting = np.array([self._end], dtype=self.dtype)  # the first token has something before it too

    @cached_property
    def dtype(self) -> np.dtype:
        """Two bytes a token where they suffice."""
        return np.dtype(np.uint16 if self._tokenizer.get_vocab_size() < 2**16 else np.uint32)

    @property
    def filler(self) -> int:
        return filler_of(self.dtype)

    def add(self, texts: list[str]) -> np.ndarray:
        """The sequences (n, sequence_length + 1) that these texts, after those before them, complete.

        Raises:
            DataError: a text holds the mark of a text's end.
        """
        self._take(texts)
        return self._cut((len(self._waiting) - 1) // self._length)

    def finish(self) -> np.ndarray:
        """The last sequence, filled up; or none."""
        if len(self._waiting) == 1:
            return self._cut(0)
        missing = self._length + 1 - len(self._waiting)
        self._waiting = np.pad(self._waiting, (0, missing), constant_values=self.filler)
        return self._cut(1)

    def _take(self, texts: list[str]) -> None:
        if strange := next((text for text in texts if END in text), None):
            raise DataError(f"a text holds {END!r}, which marks the end of texts: {strange[:60]!r}; remove it")
        numbers = (encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        added = [np.array([*ids, self._end], dtype=self.dtype) for ids in numbers]
        self._waiting = np.concatenate([self._waiting, *added])

    def _cut(self, num_sequences: int) -> np.ndarray:
        starts = np.arange(num_sequences)[:, None] * self._length
        cut = self._waiting[starts + np.arange(self._length + 1)]
        self._waiting = self._waiting[num_sequences * self._length :]
        return cut


def filler_of(dtype: np.dtype) -> int:
    """The number that stands for no token."""
    return int(np.iinfo(dtype).max)
