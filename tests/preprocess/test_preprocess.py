"""From raw files to a data set, in the real store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from commands.environment import PROJECT
from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS, Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.sample_data import digits_parquet
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.workbench import DIGITS, ORIGIN, blobs, csv_bytes, own_catalog, parquet_bytes, upload

CONFIG = PreprocessConfig(target="kind")


def run(catalog: Catalog, files: Mapping[str, bytes], config: PreprocessConfig = CONFIG) -> Product:
    return preprocess(catalog, snapshot(catalog, upload(catalog.store, files), ORIGIN).ref, config, ORIGIN)


def rows_of(catalog: Catalog, product: Product, folder: Path) -> dict[str, pd.DataFrame]:
    dataset = Dataset.fetch(catalog, product.ref, folder, SPLITS)
    return {split: pd.concat(dataset.frames(split)) for split in SPLITS}


def shards(product: Product) -> dict[str, str]:
    """Name -> sha256 of everything but the quarantine and the list of the user's files."""
    files = product.manifest.content.files
    return {name: entry.sha256 for name, entry in files.items() if not name.startswith(("rejected/", "partitions"))}


def test_every_row_is_accounted_for(catalog: Catalog, tmp_path: Path):
    """Rows read = kept + rejected + duplicates, in the facts, the report and the files themselves."""
    rows = blobs(400)
    rows.loc[7, "a"] = np.nan
    rows.loc[9, "b"] = 1000.0
    files = {"1.parquet": parquet_bytes(rows), "2.csv": csv_bytes(rows[:50])}
    config = CONFIG.model_copy(update={"ranges": {"*": (-100, 100)}, "shard_rows": 64})
    product = run(catalog, files, config)
    facts = product.manifest.content.facts
    assert {name: facts[name] for name in ("read", "kept", "rejected", "duplicates")} == {
        "read": 450, "kept": 398, "rejected": 4, "duplicates": 48,
    }  # fmt: skip
    report = json.loads(catalog.read(product.ref, "report.json"))
    assert report["rejected"] == [
        {"column": "a", "reason": "null", "rows": 2},
        {"column": "b", "reason": "out of range", "rows": 2},
    ]
    splits = rows_of(catalog, product, tmp_path)
    assert {split: len(frame) for split, frame in splits.items()} == facts["splits"]
    kept = pd.concat(splits.values()).sort_values(["a", "b"], ignore_index=True)
    expected = rows.drop([7, 9]).sort_values(["a", "b"], ignore_index=True)
    pd.testing.assert_frame_equal(kept, expected)
    sizes = [parquet.read_metadata(path).num_rows for path in sorted((tmp_path / "train").iterdir())]
    assert set(sizes[:-1]) == {64}


def test_the_quarantine_says_where_and_why(catalog: Catalog):
    """Each refused row with file, row number, column, reason and value."""
    rows = blobs(100).astype({"a": object})
    rows.loc[3, "a"] = "oops"
    product = run(catalog, {"part.csv": csv_bytes(rows)})
    quarantine = pd.read_parquet(BytesIO(catalog.read(product.ref, "rejected/000000.parquet")))
    assert quarantine.to_dict("records") == [
        {"file": "part.csv", "row": 4, "column": "a", "reason": "not a number", "value": "oops"}
    ]


def test_a_torn_row_is_quarantined_with_its_number(catalog: Catalog):
    """Rows with too few or too many fields are counted and put down; the numbers of the rows behind them stay right."""
    lines = csv_bytes(blobs(60)).splitlines(keepends=True)
    lines[3:3] = [b"1,2\n", b"oops,1,1\n"]
    body = b"".join([*lines, b"1,2,3,4\n"])
    product = run(catalog, {"p.csv": body}, CONFIG.model_copy(update={"max_rejected_fraction": 0.1}))
    quarantine = pd.read_parquet(BytesIO(catalog.read(product.ref, "rejected/000000.parquet")))
    assert quarantine.sort_values("row")[["row", "column", "reason", "value"]].to_numpy().tolist() == [
        [3, "", "2 fields instead of 3", "1,2"],
        [4, "a", "not a number", "oops"],
        [63, "", "4 fields instead of 3", "1,2,3,4"],
    ]
    assert product.manifest.content.facts["read"] == 63
    assert product.manifest.content.facts["kept"] == 60


def test_csv_and_parquet_make_one_data_set(catalog: Catalog):
    """The same rows in either format, in one file or in three, give the same bytes."""
    files = dict(digits_parquet())
    frames = [pd.read_parquet(BytesIO(body)) for body in files.values()]
    whole = pd.concat(frames, ignore_index=True)
    variants = [
        files,
        {f"{number}.csv": csv_bytes(frame) for number, frame in enumerate(frames)},
        {"all.parquet": parquet_bytes(whole)},
        {"all.csv": csv_bytes(whole.astype(int))},
    ]
    products = [run(catalog, variant, DIGITS) for variant in variants]
    assert len({product.manifest.content.inputs["snapshot"] for product in products}) == 4
    for product in products:
        assert shards(product) == shards(products[0])
    assert products[0].manifest.content.facts["kept"] == 1797


def test_the_same_work_has_the_same_digest(catalog: Catalog, settings: Settings):
    """Made again, elsewhere, it is the same artifact to the last byte."""
    files = {"part.parquet": parquet_bytes(blobs())}
    one, other = run(catalog, files), run(own_catalog(settings), files)
    assert not other.reused
    assert one.ref.digest == other.ref.digest


SAME_WORK = """
import sys
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.settings import load_settings
from tests.workbench import ORIGIN, own_catalog
catalog = own_catalog(load_settings())
transform = {"select": {"variance": 0, "mutual_information": 2}, "components": 1}
config = PreprocessConfig.model_validate({"target": "kind", "transform": transform})
print(preprocess(catalog, snapshot(catalog, sys.argv[1], ORIGIN).ref, config, ORIGIN).ref.digest)
"""


@pytest.mark.soak
def test_threads_do_not_show(store: Store, tmp_path: Path):
    """One thread or four, in processes of their own: one digest, with selection and extraction too."""
    del store  # it runs
    rows = pd.concat([blobs(150_000), blobs(1000)])
    (tmp_path / "rows.csv").write_bytes(csv_bytes(rows))
    digests = set()
    for threads in ("1", "4"):
        limits = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        done = subprocess.run(
            [sys.executable, "-c", SAME_WORK, f"file://{tmp_path}"],
            env=os.environ | limits,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_growing_data_moves_no_row(catalog: Catalog, tmp_path: Path):
    """A row that was in the test split stays in it when more arrive."""
    first = {"1.parquet": parquet_bytes(blobs(200))}
    small = rows_of(catalog, run(catalog, first), tmp_path / "small")
    large = rows_of(
        catalog, run(catalog, {"0.parquet": parquet_bytes(blobs(200, seed=1)), **first}), tmp_path / "large"
    )
    for split in SPLITS:
        assert set(small[split]["a"]) <= set(large[split]["a"])


def test_the_transform_sees_the_training_split_only(catalog: Catalog, tmp_path: Path):
    """Means and deviations are those of the training rows, whatever their shards."""
    product = run(catalog, {"1.parquet": parquet_bytes(blobs(500))}, CONFIG.model_copy(update={"shard_rows": 70}))
    train = rows_of(catalog, product, tmp_path)["train"]
    transform = Dataset(tmp_path).transform
    assert transform.columns == ["a", "b"]
    np.testing.assert_allclose([f.offset for f in transform.features], train[["a", "b"]].mean())
    np.testing.assert_allclose([f.scale for f in transform.features], train[["a", "b"]].std(ddof=0))
    features, targets = Dataset(tmp_path).load("train")
    assert features.shape == (len(train), 2)
    assert set(targets) == {0, 1, 2}


def test_columns_without_a_part_are_ignored(catalog: Catalog, tmp_path: Path):
    """* takes the numeric columns; identity goes with the rows; the rest is named in the report."""
    rows = blobs(300).assign(who=[f"person {number % 60}" for number in range(300)], note="text")
    product = run(catalog, {"1.parquet": parquet_bytes(rows)}, CONFIG.model_copy(update={"identity": ["who"]}))
    assert json.loads(catalog.read(product.ref, "report.json"))["columns"] == {
        "features": ["a", "b"], "target": "kind", "identity": ["who"], "ignored": ["note"],
    }  # fmt: skip
    people = [set(frame["who"]) for frame in rows_of(catalog, product, tmp_path).values()]
    assert sum(map(len, people)) == 60


def test_text_labels_stay_text(catalog: Catalog, tmp_path: Path):
    """Classes are the sorted labels of the training split."""
    rows = blobs().assign(kind=lambda frame: frame["kind"].map({0: "ant", 1: "bee", 2: "007"}))
    run_ = run(catalog, {"1.csv": csv_bytes(rows)})
    assert Dataset.fetch(catalog, run_.ref, tmp_path, []).target.classes == ["007", "ant", "bee"]


def typed(column: str, values: list) -> bytes:
    """Blobs with one column replaced by an Arrow array of another type."""
    table = pa.Table.from_pandas(blobs(len(values)), preserve_index=False)
    buffer = BytesIO()
    parquet.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values)), buffer)
    return buffer.getvalue()


GOOD = parquet_bytes(blobs(200))
EXPLICIT = PreprocessConfig(target="kind", features=["a", "b"])
BAD: dict[str, tuple[dict[str, bytes], PreprocessConfig, str]] = {
    "missing target": ({"p.parquet": parquet_bytes(blobs().drop(columns="kind"))}, CONFIG, r"p\.parquet: column 'kind' is missing; the file has a, b"),
    "missing feature in a later file": (
        {"1.parquet": GOOD, "2.csv": csv_bytes(blobs().drop(columns="b"))}, CONFIG, r"2\.csv: column 'b' is missing"),
    "words for numbers": ({"p.csv": csv_bytes(blobs().assign(b="high"))}, EXPLICIT, r"p\.csv: column 'b' should hold numbers .*'high'"),
    "lists for numbers": ({"p.parquet": typed("b", [[1.0]] * 200)}, EXPLICIT, r"p\.parquet: column 'b' is of type List.*convert it"),
    "dates for numbers in a later file": (
        {"1.parquet": GOOD, "2.parquet": typed("b", [pd.Timestamp(0)] * 9)}, EXPLICIT, r"2\.parquet: column 'b' is of type Datetime"),
    "no numeric column": ({"p.csv": csv_bytes(blobs().assign(a="x", b="y"))}, CONFIG, "no numeric column"),
    "no rows": ({"1.parquet": parquet_bytes(blobs(0)), "2.csv": b"a,b,kind\n"}, CONFIG, "no rows in 2 files"),
    "an empty file": ({"p.csv": b"\n"}, CONFIG, r"p\.csv: cannot be read as csv"),
    "a damaged file": ({"p.parquet": GOOD[:-9]}, CONFIG, r"p\.parquet: cannot be read as parquet"),
    "nan labels": ({"p.parquet": parquet_bytes(blobs().assign(kind=np.nan))}, CONFIG, r"cannot be used.*'kind' null \(300 rows\)"),
    "too many rejects": (
        {"p.parquet": GOOD}, CONFIG.model_copy(update={"ranges": {"a": (0, 1)}}), r"more than the 5\.0% of preprocess\.max_rejected_fraction: 'a' out of range"),
    "one class": ({"p.parquet": parquet_bytes(blobs().assign(kind=1))}, CONFIG, "at least 2"),
    "an empty split": ({"p.parquet": parquet_bytes(blobs(4).assign(kind=[0, 1, 0, 1]))}, CONFIG, "split is empty: 4 rows are too few"),
    "a class beyond training": (
        {"p.csv": csv_bytes(blobs().assign(kind=lambda frame: [f"c{number}" for number in range(len(frame))]))}, CONFIG, "classes that the training split has not"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_refused_with_what_to_do(catalog: Catalog, case: str):
    """Every sentence names file, column and fault; nothing is committed."""
    files, config, sentence = BAD[case]
    ref = snapshot(catalog, upload(catalog.store, files), ORIGIN).ref
    with pytest.raises(DataError, match=sentence):
        preprocess(catalog, ref, config, ORIGIN)
    assert list(catalog.store.list(f"{catalog.store.root}/artifacts/dataset")) == []


def test_a_range_for_no_feature_is_a_config_error(catalog: Catalog):
    """The field and the features there are."""
    with pytest.raises(ConfigError, match=r"preprocess\.ranges: 'c' is not a feature; those are a, b"):
        run(catalog, {"1.parquet": GOOD}, CONFIG.model_copy(update={"ranges": {"c": (0, 1)}}))


def test_a_few_nan_labels_are_quarantined(catalog: Catalog):
    """They make the label column a float one, which changes nothing for the others."""
    rows = blobs(200)
    holed = rows.astype({"kind": float})
    holed.loc[5, "kind"] = np.nan
    clean, dirty = (run(catalog, {"p.csv": csv_bytes(frame)}) for frame in (rows.drop(5), holed))
    assert dirty.manifest.content.facts["rejected"] == 1
    names = [name for name in shards(clean) if name != "report.json"]
    assert [shards(clean)[name] for name in names] == [shards(dirty)[name] for name in names]


def test_the_sample_is_the_digits(tmp_path: Path):
    """1,797 rows of 64 pixels and a label in three files, the same bytes every time."""
    files = digits_parquet()
    assert files == digits_parquet()
    frames = [pd.read_parquet(BytesIO(body)) for _, body in files]
    whole: Any = pd.concat(frames)
    assert len(files) == 3
    assert whole.shape == (1797, 65)
    assert [whole.columns[0], whole.columns[63], whole.columns[64]] == ["pixel_0_0", "pixel_7_7", "label"]
    assert sorted(whole["label"].unique()) == list(range(10))
