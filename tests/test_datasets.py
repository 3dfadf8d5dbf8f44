"""Reading a data set from a local folder."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE, Dataset
from modelyard.errors import DataError
from modelyard.task_kinds import Target
from modelyard.transform import FeatureScale, FittedTransform

TRANSFORM = FittedTransform(
    features=[FeatureScale(name="b", offset=1, scale=2), FeatureScale(name="a", offset=0, scale=1)]
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two shards of training rows, columns in another order than the network's, and no test split."""
    (tmp_path / TRANSFORM_FILE).write_text(TRANSFORM.model_dump_json())
    (tmp_path / TARGET_FILE).write_text(Target(column="kind", classes=["x", "y"]).model_dump_json())
    rows = pd.DataFrame({"a": np.arange(7.0), "b": np.arange(7.0) + 10, "kind": list("xyxyxyx")})
    (tmp_path / "train").mkdir()
    rows[:4].to_parquet(tmp_path / "train" / "000000.parquet")
    rows[4:].to_parquet(tmp_path / "train" / "000001.parquet")
    return Dataset(tmp_path)


def test_rows_come_in_their_stored_order(dataset: Dataset):
    """Shard after shard, at most as many rows at once as asked for."""
    frames = list(dataset.frames("train", batch_rows=3))
    assert [len(frame) for frame in frames] == [3, 1, 3]
    assert np.concatenate([frame["a"] for frame in frames]).tolist() == list(range(7))
    assert dataset.num_rows("train") == 7


def test_batches_follow_the_transform(dataset: Dataset):
    """Raw features in the network's column order, targets as class numbers."""
    rows, targets = next(dataset.batches("train"))
    assert rows.dtype == np.float64
    assert rows[1].tolist() == [11.0, 1.0]
    assert targets.tolist() == [0, 1, 0, 1]


def test_load_applies_the_transform(dataset: Dataset):
    """A whole split, ready for a network."""
    features, targets = dataset.load("train")
    assert features.dtype == np.float32
    assert features.shape == (7, 2)
    assert features[1].tolist() == [5.0, 1.0]
    assert targets.dtype == np.int64


def test_an_empty_split_is_an_error(dataset: Dataset):
    """Better said here than by a division further on."""
    assert dataset.num_rows("test") == 0
    with pytest.raises(DataError, match="test split is empty"):
        dataset.load("test")
