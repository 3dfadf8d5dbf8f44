"""Texts for a language model: a tokenizer fitted on the training split, and every split packed to sequences of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from modelyard.artifacts import canonical_json
from modelyard.catalog import Attempt
from modelyard.datasets import SPLITS, TARGET_FILE, TRANSFORM_FILE, Split
from modelyard.task_kinds import Target
from modelyard.token_data import TOKENS_FOLDER
from modelyard.transform import TokenConfig
from modelyard.transform.tokens import (
    END,
    TOKENIZER_FILE,
    Packer,
    TokenTransform,
    fit_tokenizer,
    token_bytes,
)

SHARD_BYTES = 32 * 2**20
SplitTexts = Callable[[Split], Iterable[list[str]]]


def write_tokens(attempt: Attempt, config: TokenConfig, column: str, texts: SplitTexts) -> dict[Split, int]:
    """Add tokenizer, packed tokens, transform and target to a data set.

    Args:
        texts: reads the texts of a split in their order, some at a time. Called twice for the training split.

    Returns:
        Tokens to foretell, by split.
    """
    tokenizer = fit_tokenizer((text for some in texts("train") for text in some), config)
    body = tokenizer.to_str().encode()
    attempt.add_bytes(TOKENIZER_FILE, body)
    transform = TokenTransform(
        column=column,
        sequence_length=config.sequence_length,
        vocabulary=tokenizer.get_vocab_size(),
        end=tokenizer.get_vocab()[END],
        tokenizer_sha256=hashlib.sha256(body).hexdigest(),
    )
    attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))
    target = Target(task="language_modelling", column=column, token_bytes=token_bytes(tokenizer))
    attempt.add_bytes(TARGET_FILE, canonical_json(target.model_dump(mode="json")))
    num_tokens: dict[Split, int] = {}
    for split in SPLITS:
        writer = _Writer(attempt, split, Packer(tokenizer, config.sequence_length))
        for some in texts(split):
            writer.add(some)
        num_tokens[split] = writer.finish()
    return num_tokens


class _Writer:
    """Writes the sequences of one split as they are completed."""

    def __init__(self, attempt: Attempt, split: Split, packer: Packer) -> None:
        self._attempt, self._split, self._packer = attempt, split, packer
        self._waiting: list[np.ndarray] = []
        self._waiting_bytes = self._num_shards = self._num_tokens = 0

    def add(self, texts: list[str]) -> None:
        self._keep(self._packer.add(texts))

    def finish(self) -> int:
        """Write what is left; the number of tokens to foretell."""
        self._keep(self._packer.finish())
        if self._waiting:
            self._flush()
        return self._num_tokens

    def _keep(self, sequences: np.ndarray) -> None:
        if not len(sequences):
            return
        self._num_tokens += int((sequences[:, 1:] != self._packer.filler).sum())
        self._waiting.append(sequences)
        self._waiting_bytes += sequences.nbytes
        if self._waiting_bytes >= SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        path = Path(self._attempt.scratch) / "tokens.npy"
        np.save(path, np.concatenate(self._waiting))
        self._attempt.add(f"{TOKENS_FOLDER}/{self._split}/{self._num_shards:06d}.npy", path)
        path.unlink()
        self._waiting, self._waiting_bytes, self._num_shards = [], 0, self._num_shards + 1
