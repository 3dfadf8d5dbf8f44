"""Identity of rows: duplicates and splits follow from values alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.preprocess.config import PreprocessConfig, SplitFractions
from modelyard.preprocess.rows import SeenRows, assign_splits, identity_digests, row_digests
from modelyard.preprocess.schema import Plan, make_plan
from tests.workbench import PROPERTY

FRACTIONS = SplitFractions(train=0.6, validation=0.2, test=0.2)
ROWS = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 3), st.sampled_from("abcdef")), min_size=1, max_size=40)


def frame_of(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(["x", "y", "who"])).astype({"x": float}) + {"x": 0.0, "y": 0, "who": ""}


def plan(identity: list[str]) -> Plan:
    config = PreprocessConfig(target="y", features=["x"], identity=identity)
    return make_plan(config, "f", pa.RecordBatch.from_pydict({"x": [0.5], "y": [1], "who": ["a"]}))


def splits(frame: pd.DataFrame, identity: list[str]) -> np.ndarray:
    chosen = plan(identity)
    return assign_splits(identity_digests(frame, chosen, row_digests(frame, chosen)), FRACTIONS)


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
    assert (frame.assign(split=splits(frame, ["who"])).groupby("who")["split"].nunique() == 1).all()


def test_the_hash_is_fixed():
    """The split of a row is a promise to data sets that exist: it must not change with a version of ours."""
    frame = frame_of([(float(number), number % 3, "a") for number in range(20)])
    assert "".join(map(str, splits(frame, []))) == "10010002002101102000"


def test_fractions_are_met():
    """Of many rows each split gets about its share."""
    frame = frame_of([(float(number), 0, "a") for number in range(20_000)])
    shares = np.bincount(splits(frame, [])) / len(frame)
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.02)


@PROPERTY
@given(ROWS)
def test_duplicates_are_equal_rows(rows: list[tuple]):
    """The first of equal rows is fresh, all later ones are not, in whatever batches they come."""
    frame, chosen = frame_of(rows), plan(["who"])
    digests = row_digests(frame, chosen)
    expected = ~frame.duplicated().to_numpy()
    assert (SeenRows().fresh(digests) == expected).all()
    seen = SeenRows()
    assert np.concatenate([seen.fresh(digests[:7]), seen.fresh(digests[7:])]).tolist() == expected.tolist()


def test_texts_do_not_run_together():
    """("ab", "c") and ("a", "bc") are two rows."""
    config = PreprocessConfig(target="y", features=["x"], identity=["p", "q"])
    chosen = make_plan(config, "f", pa.RecordBatch.from_pydict({"x": [1], "y": [1], "p": ["a"], "q": ["b"]}))
    frame = pd.DataFrame({"x": [1.0, 1.0], "y": [1, 1], "p": ["ab", "a"], "q": ["c", "bc"]})
    assert len(set(row_digests(frame, chosen))) == 2


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
