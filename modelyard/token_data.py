"""Reading a data set for language modelling: beside the clean texts it holds their tokens, packed to sequences.

train/ validation/ test/     Parquet shards of clean texts
tokens/<split>/<n>.npy       (rows, sequence_length + 1) uint16 or uint32, in the order of the texts
tokenizer.json               fitted on the training split
transform.json, target.json  `TokenTransform`, `Target`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE, Split
from modelyard.errors import DataError
from modelyard.task_kinds import NO_TOKEN, Target
from modelyard.transform.tokens import TOKENIZER_FILE, TokenTransform, filler_of

TOKENS_FOLDER = "tokens"


class TokenData:
    """Some splits of such a data set, fetched to a local folder and verified; read through memory maps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.transform = TokenTransform.model_validate_json((folder / TRANSFORM_FILE).read_bytes())
        self.target = Target.model_validate_json((folder / TARGET_FILE).read_bytes())

    @classmethod
    def fetch(cls, catalog: Catalog, ref: ArtifactRef, folder: Path, splits: Sequence[Split]) -> TokenData:
        """Download the named splits' tokens and what is needed to read them."""
        wanted = tuple(f"{TOKENS_FOLDER}/{split}/" for split in splits)
        shards = [name for name in catalog.manifest(ref).content.files if name.startswith(wanted)]
        catalog.fetch(ref, folder, [*shards, TRANSFORM_FILE, TARGET_FILE, TOKENIZER_FILE])
        return cls(folder)

    def sequences(self, split: Split) -> Sequences:
        """The sequences of a split.

        Raises:
            DataError: it has none.
        """
        shards = sorted((self._folder / TOKENS_FOLDER / split).glob("*.npy"))
        if not shards:
            raise DataError(f"the {split} split has no tokens")
        return Sequences([np.load(shard, mmap_mode="r") for shard in shards])


class Sequences:
    """Packed sequences on disk, addressed by their number."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def length(self) -> int:
        """Tokens of a sequence, each of which foretells one; the last sequence may be filled up."""
        return self._parts[0].shape[1] - 1

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (n, t) int64, n may be 0, and what follows each (n, t) int64, `NO_TOKEN` behind the end of the split."""
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = np.empty((len(numbers), self._parts[0].shape[1]), dtype=self._parts[0].dtype)
        for place, (part, number) in enumerate(zip(which, numbers, strict=True)):
            rows[place] = self._parts[part][number - self._starts[part]]
        filler = filler_of(rows.dtype)
        wide = rows.astype(np.int64)
        return np.where(wide == filler, 0, wide)[:, :-1], np.where(wide == filler, NO_TOKEN, wide)[:, 1:]
