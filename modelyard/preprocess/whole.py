"""What can be said only of the whole data set: which rows repeat earlier ones, where classes stand, what is an outlier.

Each answer becomes a `Revision` for the partitions that it concerns; the others stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pyarrow import parquet

from modelyard.catalog import Catalog, Product
from modelyard.datasets import Split
from modelyard.errors import DataError
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.duplicates import Ledger, halves_of, num_in_several, repeated
from modelyard.preprocess.fitting import even_batches, limits
from modelyard.preprocess.partition_files import ROWS_LEDGER, disjoint_ledger, unique_ledgers
from modelyard.preprocess.partitions import Partition
from modelyard.preprocess.revise import Revision
from modelyard.preprocess.schema import Column, Plan
from modelyard.preprocess.statistics import STATISTICS_FILE, Statistics, check_refused, unpack
from modelyard.transform import Moments, Sample

PARALLEL_FETCHES = 8


@dataclass(frozen=True)
class Part:
    """A partition, and its forms so far: as prepared, then as revised."""

    partition: Partition
    forms: tuple[Product, ...]

    @property
    def latest(self) -> Product:
        return self.forms[-1]

    def revised(self, product: Product) -> Part:
        return Part(self.partition, (*self.forms, product))


def find_repeated(catalog: Catalog, config: PreprocessConfig, parts: Sequence[Part], scratch: Path) -> list[Revision]:
    """For each part: the rows that go because an earlier row is there, in this part or in one before."""
    rows = repeated(_ledgers(catalog, parts, ROWS_LEDGER, scratch))
    taken = {name: repeated(_ledgers(catalog, parts, file, scratch)) for name, file in unique_ledgers(config).items()}
    return [
        Revision(repeated=rows[at], taken={name: found[at] for name, found in taken.items()})
        for at in range(len(parts))
    ]


def check_leaks(catalog: Catalog, config: PreprocessConfig, parts: Sequence[Part], scratch: Path) -> None:
    """Raise if a value of a column that splits must not share occurs in two of them.

    Raises:
        DataError: names the column, and what to do.
    """
    for number, name in enumerate(config.split.disjoint):
        num_shared = num_in_several(_ledgers(catalog, parts, disjoint_ledger(number), scratch))
        if num_shared:
            raise DataError(
                f"{num_shared} values of {name!r} occur in more than one split, so the test is known from training;"
                f" add {name!r} to preprocess.identity, or take it from split.disjoint"
            )


def label_counts(catalog: Catalog, part: Part) -> Counter[Any]:
    """Rows of each class."""
    state = unpack(_statistics(catalog, part))
    counts: Counter[Any] = Counter()
    for labels in state["labels"].values():
        for label, count in labels:
            counts[label] += count
    return counts


def merged(catalog: Catalog, config: PreprocessConfig, plan: Plan, parts: Sequence[Part]) -> Statistics:
    """Statistics of all parts, in order of arrival."""
    whole = Statistics(config, plan, whole=True)
    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        for start in range(0, len(parts), PARALLEL_FETCHES):  # so that few lie in memory at a time
            some = parts[start : start + PARALLEL_FETCHES]
            for body in pool.map(partial(_statistics, catalog), some):
                whole.merge(unpack(body))
    return whole


def split_rows(catalog: Catalog, parts: Sequence[Part], scratch: Path, split: Split) -> Iterator[pl.DataFrame]:
    """Every shard of a split, fetched one after the other."""
    for part in parts:
        for name in part.latest.manifest.content.files:
            if name.startswith(f"{split}/"):
                catalog.fetch(part.latest.ref, scratch, [name], part.latest.manifest)
                yield pl.DataFrame(pl.from_arrow(parquet.read_table(scratch / name)))
                (scratch / name).unlink()


def refused_outliers(plan: Plan) -> list[Column]:
    """Columns whose outliers are refused."""
    return [column for column in plan.columns if column.rule.outliers and column.rule.outliers.action == "reject"]


def fit_limits(plan: Plan, train: Callable[[], Iterator[pl.DataFrame]]) -> dict[str, tuple[float, float]]:
    """Bounds of the columns whose outliers are refused: a look at every training row, if there are such columns."""
    columns = refused_outliers(plan)
    samples = {column.name: Sample() for column in columns}
    moments: Moments | None = None
    for rows in even_batches(train()) if columns else ():
        part = Moments.of(np.column_stack([rows[column.name].to_numpy() for column in columns]))
        moments = moments.merge(part) if moments else part
        for name, sample in samples.items():
            sample.add(rows[name].to_numpy())
    if moments is None:
        return {}  # an empty split is said later, with what to do
    return {column.name: limits(column, moments, at, samples[column.name]) for at, column in enumerate(columns)}


def check_prepared(config: PreprocessConfig, parts: Sequence[Part]) -> None:
    """Raise if too many rows were refused already.

    Raises:
        DataError: with the numbers and the top reasons.
    """
    reasons: Counter[tuple[str, str]] = Counter()
    facts = [part.forms[0].manifest.content.facts for part in parts]
    for column, reason, count in (line for told in facts for line in told["rejected"]):
        reasons[column, reason] += count
    check_refused(sum(told["read"] for told in facts), reasons, config.max_rejected_fraction)


def _statistics(catalog: Catalog, part: Part) -> bytes:
    return catalog.read(part.latest.ref, STATISTICS_FILE, part.latest.manifest)


def _ledgers(catalog: Catalog, parts: Sequence[Part], name: str, scratch: Path) -> list[Ledger]:
    """That ledger of each part, of which the first halves are on the local disk. Ledgers of rows lie with the first form,
    those of splits with the last.
    """

    def fetch(at: int) -> Ledger:
        form = next(form for form in reversed(parts[at].forms) if name in form.manifest.content.files)
        folder = scratch / f"{at:06d}"
        catalog.fetch(form.ref, folder, [halves_of(name)], form.manifest)
        return Ledger.in_folder(folder, name, partial(catalog.fetch, form.ref, folder, [name], form.manifest))

    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        return list(pool.map(fetch, range(len(parts))))
