"""Sensitive columns, made harmless before anything else sees them: dropped (never read), masked, or hashed with a key."""

from __future__ import annotations

import hashlib

import polars as pl

from modelyard.errors import ConfigError
from modelyard.preprocess.clean import normalised
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.values import texts

MASK = "***"
DIGEST_BYTES = 16
LEAST_KEY_BYTES = 16


class Protector:
    """Replaces the values of sensitive columns.

    Args:
        key: for hashed columns; whoever has it can find out which value a hash stands for.

    Raises:
        ConfigError: a column is to be hashed, and there is no key, or a short one.
    """

    def __init__(self, config: PreprocessConfig, key: bytes | None) -> None:
        self._rules = {name: rule for name, rule in config.columns.items() if rule.sensitive}
        self._key = key or b""
        hashed = [name for name, rule in self._rules.items() if rule.sensitive == "hash"]
        if hashed and len(self._key) < LEAST_KEY_BYTES:
            raise ConfigError(
                "MODELYARD_SENSITIVE_KEY",
                f"column {hashed[0]!r} is to be hashed: set a key of at least {LEAST_KEY_BYTES} characters for the worker",
            )

    @property
    def is_needed(self) -> bool:
        return bool(self._rules)

    def fingerprint(self) -> str | None:
        """Which key was used, without saying it: another key makes another data set."""
        if not any(rule.sensitive == "hash" for rule in self._rules.values()):
            return None
        return hashlib.blake2b(b"fingerprint", key=self._key[:64], digest_size=8).hexdigest()

    def apply(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The same rows without anything sensitive; nulls stay nulls."""
        for name, rule in self._rules.items():
            if name in rows.columns:
                values = normalised(texts(rows[name]), rule.text)
                changed = self._hashed(values) if rule.sensitive == "hash" else _masked(values)
                rows = rows.with_columns(changed.alias(name))
        return rows

    def _hashed(self, values: pl.Series) -> pl.Series:
        """Keyed BLAKE2b of each value, worked out once for those that repeat."""
        found = values.drop_nulls().unique()
        hashes = [
            hashlib.blake2b(value.encode(), key=self._key[:64], digest_size=DIGEST_BYTES).hexdigest() for value in found
        ]
        return values.replace_strict(found, pl.Series(hashes, dtype=pl.String), default=None, return_dtype=pl.String)


def _masked(values: pl.Series) -> pl.Series:
    return pl.Series(values.name, [MASK]).new_from_index(0, len(values)).set(values.is_null(), None)
