"""Rows that are pairs: a query with its item, or two texts.

Features hold both sides; targets say which item it is, how frequent, and how much the row counts (`contrast.py`), or how
alike two texts are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.code_version import code_version
from modelyard.datasets import Dataset
from modelyard.datasets import Split as SplitName
from modelyard.errors import DataError
from modelyard.retrieval import Items
from modelyard.task_kinds import Target
from modelyard.train.contrast import ITEM, MAX_ITEMS
from modelyard.train.local_rows import LocalRows
from modelyard.train.rows import Batch, Rows, Split, TextSplit
from modelyard.train.starting import Parent
from modelyard.transform import FittedTransform, TextTransform
from modelyard.transform.text import NO_TOKEN

if TYPE_CHECKING:
    import pandas as pd

ITEMS_FILE, COUNTS_FILE = "items.parquet", "counts.npy"
SPLITS: tuple[SplitName, SplitName] = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Rows of pairs, with what a query is told from when it is validated.

    Attributes:
        rows: the split.
        catalogue: every item once; of its rows the second side counts. The first target of a row of ``rows`` is the number
            of its item here.
    """

    rows: Rows
    catalogue: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: torch.Tensor) -> Batch:
        return self.rows.batch(numbers)


def item_pairs(
    catalog: Catalog, ref: ArtifactRef, dataset: Dataset, rows: LocalRows, teacher: Parent | None = None
) -> tuple[Pairs, Pairs]:
    """Queries with their items, of the training and the validation split; both splits' items are the catalogue. Training rows
    have a teacher's own inputs where its transforms were fitted on other rows."""
    schema = dataset.target.items
    assert schema is not None, "preprocessing fits it"
    splits = catalog.manifest(ref).content.facts.get("splits", {})
    name = f"{ref.digest}-items-{_code()}"

    def collect(folder: Path) -> None:
        both = (frame for split in SPLITS for frame in dataset.fetched_frames(catalog, ref, split))
        found = Items.collect(both, dataset.target.column, schema.columns)
        trained = np.zeros(len(found), dtype=np.int64)
        for frame in dataset.fetched_frames(catalog, ref, "train"):
            trained += np.bincount(found.numbers(frame[found.column]), minlength=len(found))
        found.frame.to_parquet(folder / ITEMS_FILE)
        np.save(folder / COUNTS_FILE, trained)

    num_bytes = 100 * sum(splits.get(split, 0) for split in SPLITS)
    folder = rows.folder(name, num_bytes, collect)
    import pandas as pd

    items = Items(pd.read_parquet(folder / ITEMS_FILE), dataset.target.column, np.load(folder / COUNTS_FILE))
    if len(items) > MAX_ITEMS:
        raise DataError(f"the data set has {len(items):,} items, more than the {MAX_ITEMS:,} that are told apart")
    inputs = schema.apply_frame(items.frame)
    catalogue = Split.of(np.pad(inputs, ((0, 0), (dataset.transform.width, 0))), np.zeros(len(items), np.float32))
    train = _table(catalog, ref, dataset, rows, "train", items, _other_sides(dataset, teacher))
    validation = _table(catalog, ref, dataset, rows, "validation", items)
    return Pairs(rows=train, catalogue=catalogue), Pairs(rows=validation, catalogue=catalogue)


class Sides(NamedTuple):
    """What makes the network input of a pair: of its query, and of its item."""

    query: FittedTransform
    item: FittedTransform

    @property
    def width(self) -> int:
        return self.query.width + self.item.width

    def of(self, frame: pd.DataFrame) -> np.ndarray:
        return np.concatenate([self.query.apply_frame(frame), self.item.apply_frame(frame)], axis=1)

    def text(self) -> str:
        return "".join(one.model_dump_json() for one in self)


def _own_sides(transform: object, target: Target) -> Sides:
    assert isinstance(transform, FittedTransform)
    assert target.items is not None, "checked before ranks were started"
    return Sides(transform, target.items)


def _other_sides(dataset: Dataset, teacher: Parent | None) -> Sides | None:
    """A teacher's, where they are not the data set's."""
    its = _own_sides(teacher.transform, teacher.target) if teacher else None
    return its if its != _own_sides(dataset.transform, dataset.target) else None


def _table(
    catalog: Catalog,
    ref: ArtifactRef,
    dataset: Dataset,
    rows: LocalRows,
    split: SplitName,
    items: Items,
    seen: Sides | None = None,
) -> Split:
    own = _own_sides(dataset.transform, dataset.target)

    def parts() -> Iterator[tuple[np.ndarray, ...]]:
        # Among validation rows are items that training has not seen: their frequency corrects nothing there.
        frequency = np.log(np.maximum(items.counts, 1) / max(int(items.counts.sum()), 1))
        for frame in dataset.fetched_frames(catalog, ref, split):
            numbers = items.numbers(frame[items.column])
            told = np.column_stack([numbers, frequency[numbers], _weights(dataset.target, frame)]).astype(np.float32)
            yield (own.of(frame), told, seen.of(frame)) if seen else (own.of(frame), told)

    num_rows = catalog.manifest(ref).content.facts.get("splits", {}).get(split, 0)
    width = own.width + (seen.width if seen else 0)
    name = f"{ref.digest}-{split}-pairs-{_code(seen.text() if seen else '')}"
    return rows.split(name, num_rows * 4 * (width + 3), parts)


def _weights(target: Target, frame: pd.DataFrame) -> np.ndarray:
    if not target.weight:
        return np.ones(len(frame))
    return frame[target.weight].to_numpy(dtype=np.float64)


def _code(also: str = "") -> str:
    """What the rows are made by is a part of their folder's name: another version of it makes others."""
    means = [
        also,
        code_version("modelyard.datasets", ["numpy", "pandas"]),
        code_version("modelyard.retrieval", ["numpy"]),
    ]
    return hashlib.sha256("".join(means).encode()).hexdigest()[:16]


class TextPairs:
    """Pairs of texts: features (n, 2, t) int64, as wide as the longest text of a batch."""

    def __init__(self, texts: TextSplit, partners: TextSplit, targets: torch.Tensor) -> None:
        self._sides, self._targets = (texts, partners), targets

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def catalogue(self) -> Rows:
        """Every partner once."""
        _, first = np.unique(self._targets[:, ITEM].numpy(), return_index=True)
        return Chosen(self, torch.from_numpy(first))

    def scaled_(self, largest: float) -> None:
        """Divide likenesses."""
        self._targets = self._targets / largest

    @property
    def largest(self) -> float:
        """Of the likenesses, whatever their sign."""
        return float(self._targets.abs().max())

    def batch(self, numbers: torch.Tensor) -> Batch:
        sides = [side.batch(numbers).features for side in self._sides]
        width = max(side.shape[1] for side in sides)
        filled = [torch.nn.functional.pad(side, (0, width - side.shape[1]), value=NO_TOKEN) for side in sides]
        return Batch(torch.stack(filled, dim=1), self._targets[numbers])

    def num_tokens(self, numbers: torch.Tensor) -> int:
        return sum(side.num_tokens(numbers) for side in self._sides)


@dataclass(frozen=True)
class Chosen:
    """Some rows of others."""

    rows: Rows
    numbers: torch.Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, numbers: torch.Tensor) -> Batch:
        return self.rows.batch(self.numbers[numbers])


def text_pairs(catalog: Catalog, ref: ArtifactRef, dataset: Dataset) -> tuple[TextPairs, TextPairs]:
    """Texts with their partners, of the training and the validation split. Likenesses are divided by the largest of training
    where that is above 1: a cosine reaches no 5."""
    train, validation = (_texts(catalog, ref, dataset, split) for split in SPLITS)
    if dataset.target.similarity and (largest := train.largest) > 1:
        for one in (train, validation):
            one.scaled_(largest)
    return train, validation


def _texts(catalog: Catalog, ref: ArtifactRef, dataset: Dataset, split: SplitName) -> TextPairs:
    transform, target = dataset.transform, dataset.target
    assert isinstance(transform, TextTransform)
    texts: list[np.ndarray] = []
    partners: list[np.ndarray] = []
    told: list[np.ndarray] = []
    for frame in dataset.fetched_frames(catalog, ref, split):
        texts.append(transform.apply(transform.rows(frame)))
        partners.append(transform.apply(transform.tokens(list(frame[target.column]))))
        column = target.similarity or target.column
        told.append(frame[column].to_numpy())
    if not told:
        raise DataError(f"the {split} split is empty; raise preprocess.split.{split}, or add data")
    whole = np.concatenate(told)
    targets = whole.astype(np.float32) if target.similarity else _partners(whole)
    fixed = transform.width if transform.padding == "fixed" else None
    sides = [TextSplit(((part, np.zeros(len(part), np.int64)) for part in side), fixed) for side in (texts, partners)]
    return TextPairs(sides[0], sides[1], torch.from_numpy(targets))


def _partners(texts: np.ndarray) -> np.ndarray:
    """Targets (n, 3) of texts that belong together: the same partner has the same number."""
    import pandas as pd

    numbers, _ = pd.factorize(pd.Series(texts))
    return np.column_stack([numbers, np.zeros(len(texts)), np.ones(len(texts))]).astype(np.float32)
