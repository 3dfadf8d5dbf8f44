"""The user's own steps, and where labels come from."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS, Dataset
from modelyard.errors import ConfigError, DataError, ModelyardError
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess.page import report_page
from tests.workbench import ORIGIN, blobs, csv_bytes, parquet_bytes, upload

CODE = """
import pandas as pd

def in_metres(rows):
    return rows.assign(metres=pd.to_numeric(rows["a"]) * FACTOR).drop(columns="a")

def without_far(rows):
    return rows[pd.to_numeric(rows["b"]) < 6]

def fails(rows): raise KeyError("nothing")
def renumbers(rows): return rows.reset_index(drop=True).rename(index=lambda n: n + 1)
def no_frame(rows): return 3
def by_a(rows): return ["high" if a > 3 else "low" for a in pd.to_numeric(rows["a"])]
def by_b(rows): return ["high" if b > 5 else None for b in pd.to_numeric(rows["b"])]
def always_low(rows): return pd.Series("low", index=rows.index)
def too_few(rows): return ["low"]
FACTOR = 0.3048
"""
HIGH = ["own_code:by_a", "own_code:by_b", "own_code:always_low"]


@pytest.fixture(autouse=True)
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's that can be imported."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("own_code", None)
    return folder / "own_code.py"


def run(catalog: Catalog, files: Mapping[str, bytes], **fields: Any) -> Product:
    config = PreprocessConfig.model_validate({"target": "kind", "max_rejected_fraction": 1.0} | fields)
    return preprocess(catalog, snapshot(catalog, upload(catalog.store, files), ORIGIN).ref, config, ORIGIN)


def rows_of(catalog: Catalog, product: Product, folder: Path) -> pd.DataFrame:
    dataset = Dataset.fetch(catalog, product.ref, folder, SPLITS)
    return pd.concat([frame for split in SPLITS for frame in dataset.frames(split)])


def test_steps_change_columns_and_leave_rows_out(catalog: Catalog, tmp_path: Path, own_code: Path):
    """In their order, in CSV and Parquet alike; what they leave out is refused with its place. Other code, other data."""
    frame = blobs(300)
    steps = ["own_code:without_far", "own_code:in_metres"]
    files = {"1.csv": csv_bytes(frame), "2.parquet": parquet_bytes(blobs(50, seed=1))}
    product = run(catalog, files, steps=steps)
    far = frame.index[frame["b"] >= 6] + 1
    lines = pl.read_parquet(io.BytesIO(catalog.read(product.ref, "rejected/000000.parquet")))
    assert lines.filter(pl.col("file") == "1.csv")["row"].to_list() == list(far)
    assert set(lines["reason"]) == {"left out by own_code:without_far"}
    rows = rows_of(catalog, product, tmp_path / "rows")
    assert sorted(rows["metres"])[:5] == pytest.approx(
        sorted(pd.concat([frame, blobs(50, seed=1)]).query("b < 6")["a"] * 0.3048)[:5]
    )
    facts = product.manifest.content.facts
    assert facts["read"] == 350 == facts["kept"] + facts["rejected"]
    assert run(catalog, files, steps=steps).reused
    # Of another length: a compiled file is taken for current by its source's size and second.
    own_code.write_text(CODE.replace("0.3048", "0.91440"))
    sys.modules.pop("own_code")
    changed = run(catalog, files, steps=steps)
    assert not changed.reused
    yards = rows_of(catalog, changed, tmp_path / "yards")
    assert sorted(yards["metres"]) == pytest.approx(sorted(rows["metres"] * 3))


def test_functions_vote(catalog: Catalog, tmp_path: Path):
    """The majority's label, none for a tie; coverage, conflicts and wins as counted by hand, over partitions too."""
    frame = blobs(400)
    product = run(catalog, {"1.csv": csv_bytes(frame[:200]), "2.csv": csv_bytes(frame[200:])}, target="level",
                  features=["a", "b"], partition_bytes=1, label={"functions": HIGH})  # fmt: skip
    high_a, high_b = frame["a"] > 3, frame["b"] > 5
    tie = high_a & ~high_b
    rows = rows_of(catalog, product, tmp_path / "rows")
    assert len(rows) == 400 - tie.sum() == product.manifest.content.facts["kept"]
    assert (rows["level"] == "high").sum() == (high_a & high_b).sum()
    report = json.loads(catalog.read(product.ref, "report.json"))
    conflict = high_a | high_b
    assert report["label_functions"]["own_code:by_b"] == {
        "rows": 400, "covered": high_b.sum(), "overlaps": high_b.sum(), "conflicts": (high_b & conflict).sum(),
        "wins": (high_a & high_b).sum(),
    }  # fmt: skip
    assert "own_code:by_b" in report_page("x", report)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"mapping": {"0": "no", "1": "yes", "2": "yes"}}, {0: "no", 1: "yes", 2: "yes"}),
        ({"mapping": {"0": 7, "1": 8}}, {0: 7, 1: 8}),
        ({"expression": "CAST(kind AS INT) > 0"}, {0: 0, 1: 1, 2: 1}),
        (
            {"expression": "CAST(kind AS INT) % 2", "mapping": {"0": "even", "1": "odd"}},
            {0: "even", 1: "odd", 2: "even"},
        ),
    ],
)
def test_labels_by_mapping_and_expression(
    catalog: Catalog, tmp_path: Path, label: dict[str, Any], expected: dict[int, Any]
):
    """The same from text and from numbers; what a mapping does not name has no label and is refused."""
    frame = blobs(300)
    products = [
        run(catalog, files, label=label) for files in ({"p.csv": csv_bytes(frame)}, {"p.parquet": parquet_bytes(frame)})
    ]
    known = frame[frame["kind"].isin(expected)]
    for number, product in enumerate(products):
        rows = rows_of(catalog, product, tmp_path / str(number)).set_index("a")
        assert rows.loc[known["a"], "kind"].to_list() == [expected[kind] for kind in known["kind"]]
        assert product.manifest.content.facts["rejected"] == len(frame) - len(known)


BAD: dict[str, tuple[dict[str, Any], type[ModelyardError], str]] = {
    "no module": ({"steps": ["no_such:thing"]}, ConfigError, "no module 'no_such'"),
    "no function": ({"steps": ["own_code:thing"]}, ConfigError, "'own_code:thing' cannot be imported"),
    "an error": ({"steps": ["own_code:fails"]}, DataError, r"p\.csv: step own_code:fails failed: KeyError"),
    "other rows": ({"steps": ["own_code:renumbers"]}, DataError, "gave rows that it was not given"),
    "no frame": ({"steps": ["own_code:no_frame"]}, DataError, "gave a int, not a frame"),
    "a column gone": ({"steps": ["own_code:in_metres"], "features": ["a", "b"]}, DataError, "'a' is missing; the file, steps"),
    "too few labels": ({"label": {"functions": ["own_code:too_few"]}}, DataError, "gave 1 labels for 200 rows"),
    "no such column": ({"label": {"expression": "price > 3"}}, ConfigError, r"label\.expression: 'price > 3' cannot be worked out"),
    "no sql": ({"label": {"expression": "kind >"}}, ConfigError, "cannot be worked out"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_what_the_users_code_does_wrong_is_said(catalog: Catalog, case: str):
    """File, function, fault."""
    fields, error, sentence = BAD[case]
    with pytest.raises(error, match=sentence):
        run(catalog, {"p.csv": csv_bytes(blobs(200))}, **fields)


def test_one_source_of_labels():
    """An expression and functions would contradict each other."""
    with pytest.raises(ValidationError, match="not both"):
        PreprocessConfig.model_validate({"target": "k", "label": {"expression": "a", "functions": ["x:y"]}})


def test_wrong_labels_are_found(catalog: Catalog, tmp_path: Path):
    """Of the handwritten digits, with every fiftieth label shifted by one: most of them stand among as many suspects,
    named by their place in the shards, with what they should be."""
    frame = load_digits(as_frame=True).frame[:1000]
    wrong = frame.assign(target=(frame["target"] + (frame.index % 50 == 7)) % 10)
    label = {"suspects": 20}
    noisy = run(catalog, {"d.parquet": parquet_bytes(wrong)}, target="target", label=label, shard_rows=400)
    told = json.loads(catalog.read(noisy.ref, "report.json"))["label_suspects"]
    dataset = Dataset.fetch(catalog, noisy.ref, tmp_path / "rows", ["train"])
    train = pd.concat(dataset.frames("train"), ignore_index=True)
    pixels = [name for name in frame if name != "target"]
    truth = train.merge(frame, on=pixels, how="left", suffixes=("", "_true"))["target_true"]
    shifted = set(train.index[train["target"] != truth])
    found = [line["row"] for line in told["rows"]]
    assert told["checked"] == len(train)
    assert len(shifted & set(found)) >= 0.6 * len(shifted)  # by chance: one in forty
    assert all(int(line["likely"]) == truth[line["row"]] for line in told["rows"] if line["row"] in shifted)
    assert "probably wrong" in report_page("x", json.loads(catalog.read(noisy.ref, "report.json")))


@pytest.mark.parametrize("task", ["regression", "language_modelling"])
def test_what_has_no_classes_has_no_wrong_ones(task: str):
    """Refused before anything is read."""
    with pytest.raises(ValidationError, match="looks at classes"):
        PreprocessConfig.model_validate({"target": "k", "task": task, "label": {"suspects": 3}})
