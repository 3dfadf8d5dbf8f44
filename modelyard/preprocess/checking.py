"""Raw batches to clean rows: the part of a partition's preparation that looks at one batch at a time.

It runs in a thread ahead of what writes the rows, so that a machine's second core has work. What it counts may be asked
for when its last batch was taken.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from modelyard.preprocess.clean import clean, rejection
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.labels import Votes, labelled
from modelyard.preprocess.profile import TableProfile
from modelyard.preprocess.protect import Protector
from modelyard.preprocess.raw_rows import RawBatch
from modelyard.preprocess.schema import Plan, check_file, make_plan
from modelyard.preprocess.spans import aligned, written
from modelyard.preprocess.steps import apply_step
from modelyard.transform import TextTransform

NO_PLACES = np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class CheckedBatch:
    """What became of a batch.

    Attributes:
        plan: what its rows were checked by.
        refused: lines of the quarantine, in the order in which they were found.
        rows: clean rows; None where there are none.
        places: (n, 2) for each of them the number of its file in the partition, and its own number there.
    """

    plan: Plan
    refused: list[pl.DataFrame]
    rows: pl.DataFrame | None = None
    places: np.ndarray = field(default_factory=lambda: NO_PLACES)


class Checker:
    """Checks the batches of a partition's files, in order of arrival.

    Args:
        names: of the partition's files.
        plan: None if the first rows are to decide it.
        reader: where spans of a text are checked by its tokens.

    Attributes:
        num_read: rows so far, good or bad.
        votes: what label functions said.
        before: the rows as they came; None as long as there is no plan.
    """

    def __init__(
        self,
        config: PreprocessConfig,
        protector: Protector,
        names: Sequence[str],
        plan: Plan | None,
        reader: TextTransform | None,
    ) -> None:
        self._config, self._protector, self._names, self._reader = config, protector, names, reader
        self.plan = plan
        self.num_read = 0
        self.votes = Votes()
        self.before: TableProfile | None = None
        self._torn: list[pl.DataFrame] = []  # lines that wait for a plan

    def checked(self, batches: Generator[RawBatch], number: int, file: str) -> Generator[CheckedBatch]:
        """The batches of a file, as far as there is a plan to check them by.

        Args:
            number: of the file in the partition, for batches that do not say it themselves.

        Raises:
            DataError: the file does not fit the plan, or there is none that fits it.
        """
        with closing(batches):
            for batch in batches:
                checked = self._check(batch, number, file)
                if checked:
                    yield checked

    def _check(self, batch: RawBatch, number: int, file: str) -> CheckedBatch | None:
        self.num_read += batch.num_read
        if batch.torn is not None:
            self._torn.append(batch.torn)
        files_of = batch.files if batch.files is not None and len(batch.files) else np.full(len(batch.numbers), number)
        places = np.column_stack([files_of, batch.numbers])
        rows, places = self._by_user(self._protector.apply(batch.rows), places, file)
        if self.plan is None and rows.height:
            self.plan = make_plan(self._config, file, rows)
        if self.plan is None:
            return None
        torn, self._torn = self._torn, []
        if not rows.height:
            return CheckedBatch(self.plan, torn)
        check_file(self.plan, file, rows.schema)
        return self._cleaned(rows, self.plan, torn, places, file)

    def _by_user(self, rows: pl.DataFrame, places: np.ndarray, file: str) -> tuple[pl.DataFrame, np.ndarray]:
        """Rows and places after the user's own steps and labels."""
        config = self._config
        for step in config.steps:
            rows, stays = apply_step(rows, step, file)
            gone = rejection(file, np.flatnonzero(~stays), "", f"left out by {step}")
            self._torn.append(self._placed(gone, places))
            places = places[stays]
        if rows.height:
            rows = labelled(rows, config.target, config.label, file, self.votes)
        if self._reader and rows.height:
            rows, stays, gone = written(rows, config, file)
            self._torn.append(self._placed(gone, places))
            places = places[stays]
        return rows, places

    def _cleaned(
        self, rows: pl.DataFrame, plan: Plan, torn: list[pl.DataFrame], places: np.ndarray, file: str
    ) -> CheckedBatch:
        cleaned = clean(rows, plan, file, np.arange(rows.height))
        if self._reader:
            cleaned = aligned(cleaned, rows, self._config, self._reader, file)
        self.before = self.before or TableProfile.of_partition(plan.columns)
        self.before.add(cleaned.parsed)
        refused = [*torn, self._placed(cleaned.rejected, places)]
        if not cleaned.rows.height:
            return CheckedBatch(plan, refused)
        return CheckedBatch(plan, refused, cleaned.rows, places[cleaned.numbers])

    def _placed(self, lines: pl.DataFrame, places: np.ndarray) -> pl.DataFrame:
        """Lines of the quarantine with the file and number of each row instead of its place in the batch."""
        if not lines.height:
            return lines
        here = places[lines["row"].to_numpy()]
        names = pl.Series("file", [self._names[number] for number in here[:, 0]], dtype=pl.String)
        return lines.with_columns(names, pl.Series("row", here[:, 1], dtype=pl.Int64))
