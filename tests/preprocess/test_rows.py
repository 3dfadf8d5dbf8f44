"""Identity of rows: duplicates and splits follow from values alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.preprocess import duplicates
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.duplicates import Ledger, LedgerWriter, repeated
from modelyard.preprocess.rows import LONG_TEXT_BYTES, assign_by_hash, row_hashes
from modelyard.preprocess.sections import SplitConfig
from tests.workbench import PROPERTY

FRACTIONS = SplitConfig(train=0.6, validation=0.2, test=0.2)
ROWS = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 3), st.sampled_from("abcdef")), min_size=1, max_size=40)
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=30)
COLUMNS = ["x", "y", "who"]


def frame_of(rows: list[tuple]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema={"x": pl.Float64, "y": pl.Int64, "who": pl.String}, orient="row")
    # Cleaning leaves no -0.0.
    return frame.with_columns(pl.when(pl.col("x") == 0).then(0.0).otherwise(pl.col("x")).alias("x"))


def splits(frame: pl.DataFrame, identity: list[str]) -> np.ndarray:
    return assign_by_hash(row_hashes(frame, identity or COLUMNS), FRACTIONS)


@pytest.mark.parametrize("identity", [[], ["who"]])
@PROPERTY
@given(old=ROWS, new=ROWS)
def test_rows_stay_in_their_split_while_data_grows(identity: list[str], old: list[tuple], new: list[tuple]):
    """More rows, before or behind, move none of those there were."""
    alone = splits(frame_of(old), identity)
    assert (splits(frame_of(old + new), identity)[: len(old)] == alone).all()
    assert (splits(frame_of(new + old), identity)[len(new) :] == alone).all()


@PROPERTY
@given(ROWS)
def test_rows_of_one_identity_stay_together(rows: list[tuple]):
    """All rows of a person are in one split, so that no test row is half known from training."""
    frame = frame_of(rows)
    assigned = frame.with_columns(pl.Series("split", splits(frame, ["who"])))
    assert (assigned.group_by("who").agg(pl.col("split").n_unique())["split"] == 1).all()


def test_the_hash_is_fixed():
    """The split of a row is a promise to data sets that exist: it must not change with a version of anything."""
    frame = frame_of([(float(number), number % 3, "abcdefghij"[:number]) for number in range(20)])
    assert "".join(map(str, splits(frame, []))) == "20200010220220220202"
    long = pl.DataFrame({"text": [None, "", "é" * LONG_TEXT_BYTES]}, schema={"text": pl.String})
    assert row_hashes(long, ["text"])[:, 0].tolist() == [
        5319541251822433485,
        11718101864910123335,
        12175178684974650326,
    ]


def test_fractions_are_met():
    """Of many rows each split gets about its share."""
    frame = frame_of([(float(number), 0, "a") for number in range(20_000)])
    shares = np.bincount(splits(frame, [])) / len(frame)
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.02)


@PROPERTY
@given(TEXTS)
def test_texts_hash_by_value(texts: list[str | None]):
    """Equal texts have equal hashes wherever they stand in a column, different ones different hashes."""
    column = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    together = [tuple(pair) for pair in row_hashes(column, ["text"]).tolist()]
    alone = [tuple(row_hashes(column[number], ["text"])[0].tolist()) for number in range(len(texts))]
    assert together == alone
    assert len(set(together)) == len(set(texts))


@PROPERTY
@given(rows=ROWS, cut=st.integers(0, 40))
def test_duplicates_are_equal_rows(rows: list[tuple], cut: int):
    """The first of equal rows is fresh, all later ones are not, in whatever batches they come."""
    frame = frame_of(rows)
    hashes = row_hashes(frame, COLUMNS)
    with TemporaryDirectory() as folder:
        first, second = (
            ledger_of(Path(folder) / name, [part]) for name, part in (("a", hashes[:cut]), ("b", hashes[cut:]))
        )
        here, there = repeated([first, second])
    found = np.zeros(len(hashes), dtype=bool)
    found[np.concatenate([here, there + np.uint32(cut)])] = True
    assert found.tolist() == (~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series()).to_list()


@pytest.mark.parametrize("waiting", [duplicates.WAITING_ROWS, 3000])
def test_duplicates_are_found_across_all_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int):
    """As many rows as fill every bucket, each there twice: every second one is found, no first one; on disk or not."""
    monkeypatch.setattr(duplicates, "WAITING_ROWS", waiting)
    hashes = row_hashes(pl.DataFrame({"x": np.arange(20_000.0)}), ["x"])
    ledger = ledger_of(tmp_path / "ledger", np.array_split(np.concatenate([hashes, hashes]), 7))
    assert all(len(ledger.bucket(number)) for number in range(duplicates.NUM_BUCKETS))
    assert repeated([ledger])[0].tolist() == list(range(20_000, 40_000))


def test_the_rest_of_a_ledger_is_brought_only_where_something_repeats(tmp_path: Path):
    """First halves say of most data sets that nothing does; else those ledgers are brought that have a part in it."""
    hashes = row_hashes(pl.DataFrame({"x": np.arange(3000.0)}), ["x"])
    parts = {"a": hashes[:1000], "b": hashes[1000:2000], "c": np.concatenate([hashes[2000:], hashes[5:6]])}
    brought, ledgers = [], []
    for name, part in parts.items():
        made = ledger_of(tmp_path / name, [part])
        aside = made.rest.rename(tmp_path / f"{name}-rest")

        def bring(name: str = name, aside: Path = aside, rest: Path = made.rest) -> None:
            brought.append(name)
            aside.rename(rest)

        ledgers.append(Ledger(made.halves, made.rest, bring))
    assert [rows.tolist() for rows in repeated(ledgers[:2])] == [[], []]
    assert brought == []
    assert [rows.tolist() for rows in repeated(ledgers)] == [[], [], [1000]]
    assert brought == ["a", "c"]


def ledger_of(folder: Path, parts: Sequence[np.ndarray]) -> Ledger:
    writer = LedgerWriter(folder)
    for part in parts:
        writer.add(part)
    return writer.finish()


def test_texts_do_not_run_together():
    """("ab", "c") and ("a", "bc") are two rows."""
    frame = pl.DataFrame({"p": ["ab", "a"], "q": ["c", "bc"]})
    assert len(np.unique(row_hashes(frame, ["p", "q"]), axis=0)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": {"train": 0.5, "validation": 0.1, "test": 0.1}},
        {"ranges": {"x": (3, 1)}},
        {"features": ["y"]},
        {"features": ["x", "x"]},
        {"features": []},
        {"identity": ["y"]},
        {"nulls": "ignore"},
        {"shards": 3},
    ],
)
def test_contradictory_configs_are_refused(wrong: dict):
    """Fractions that do not sum to 1, empty ranges, columns with two parts, unknown keys."""
    with pytest.raises(ValidationError):
        PreprocessConfig.model_validate({"target": "y"} | wrong)
