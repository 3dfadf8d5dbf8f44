"""Rules for single columns, from the raw files to the data set and its transform."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from pyarrow import parquet
from pydantic import ValidationError

from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS, Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from tests.workbench import ORIGIN, csv_bytes, parquet_bytes, upload

KEY = b"0123456789abcdef"
CITIES = np.array(["Lima", "Oslo", "Kyoto"])


def people(num_rows: int = 600, seed: int = 0) -> pd.DataFrame:
    """A table as people keep them: numbers, texts, dates, a name nobody may see, and a label."""
    rng = np.random.default_rng(seed)
    city = rng.integers(0, 3, num_rows)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, num_rows),
            "income": rng.lognormal(8, 1, num_rows).round(2),
            "city": CITIES[city],
            "joined": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**8, num_rows), unit="s"),
            "member": rng.random(num_rows) < 0.5,
            "name": [f"Secretperson{number:04d}" for number in range(num_rows)],
            "label": city,
        }
    )


def config(**fields: Any) -> PreprocessConfig:
    return PreprocessConfig.model_validate({"target": "label", "max_rejected_fraction": 0.1} | fields)


def run(catalog: Catalog, files: Mapping[str, bytes], chosen: PreprocessConfig, key: bytes | None = None) -> Product:
    source = snapshot(catalog, upload(catalog.store, files), ORIGIN)
    return preprocess(catalog, source.ref, chosen, ORIGIN, key)


def frames(catalog: Catalog, product: Product, folder: Path) -> tuple[Dataset, dict[str, pd.DataFrame]]:
    dataset = Dataset.fetch(catalog, product.ref, folder, SPLITS)
    return dataset, {split: pd.concat(dataset.frames(split), ignore_index=True) for split in SPLITS}


def reasons(catalog: Catalog, product: Product) -> list[tuple]:
    lines = pl.read_parquet(BytesIO(catalog.read(product.ref, "rejected/000000.parquet")))
    return lines.sort("row").select("row", "column", "reason", "value").rows()


FEATURES = ["age", "income", "city", "joined", "member"]
TYPES = {"city": {"type": "category"}, "joined": {"type": "date"}, "member": {"type": "boolean"}}


def test_types_ranges_values_and_dates_are_held(catalog: Catalog):
    """Each rule refuses the row that breaks it, with the rule's own reason."""
    rows = people().astype({"age": object, "member": object, "joined": str})
    rows.loc[0, "age"] = 30.5
    rows.loc[1, "age"] = 17
    rows.loc[2, "city"] = "Atlantis"
    rows.loc[3, "joined"] = "2051-01-01"
    rows.loc[4, "joined"] = "the day before yesterday"
    rows.loc[5, "member"] = "perhaps"
    rules = {
        "age": {"type": "integer", "range": [18, 120]},
        "city": {"type": "category", "values": list(CITIES)},
        "joined": {"type": "date", "latest": "2030-01-01"},
        "member": {"type": "boolean"},
    }
    product = run(catalog, {"p.csv": csv_bytes(rows)}, config(features=FEATURES, columns=rules))
    assert reasons(catalog, product) == [
        (1, "age", "not an integer", "30.5"),
        (2, "age", "out of range", "17"),
        (3, "city", "unknown value", "Atlantis"),
        (4, "joined", "out of range", "2051-01-01"),
        (5, "joined", "not a date", "the day before yesterday"),
        (6, "member", "not a boolean", "perhaps"),
    ]
    assert product.manifest.content.facts["kept"] == 594


def test_unique_columns_keep_their_first_value(catalog: Catalog):
    """A later row with a value that occurred is refused; a whole duplicate is a duplicate all the same."""
    rows = people(300)
    rows["name"] = rows["name"].where(rows.index != 50, "Secretperson0007")
    rows = pd.concat([rows, rows[:5]])
    product = run(catalog, {"p.csv": csv_bytes(rows)}, config(keep=["name"], columns={"name": {"unique": True}}))
    assert reasons(catalog, product) == [(51, "name", "not unique", "Secretperson0007")]
    facts = product.manifest.content.facts
    assert (facts["read"], facts["kept"], facts["rejected"], facts["duplicates"]) == (305, 299, 1, 5)


def test_nulls_follow_the_policy_of_their_column(catalog: Catalog, tmp_path: Path):
    """Refused, left out, or kept for the transform to fill with what the training rows say."""
    rng = np.random.default_rng(1)
    rows = people(2000).astype({"age": float})
    for column in ("age", "income", "city", "joined"):
        rows.loc[rng.choice(2000, 40, replace=False), column] = None
    rules = {
        "age": {"nulls": "median"},
        "income": {"nulls": "drop"},
        "city": {"type": "category", "nulls": "most_frequent"},
        "joined": {"type": "date", "nulls": "value", "fill": "2021-05-01"},
    }
    product = run(
        catalog,
        {"p.parquet": parquet_bytes(rows)},
        config(features=FEATURES[:4], columns=rules, max_rejected_fraction=0),
    )
    facts = product.manifest.content.facts
    assert (facts["kept"], facts["rejected"]) == (1960, 40)
    assert {reason for _, _, reason, _ in reasons(catalog, product)} == {"null, dropped"}
    dataset, parts = frames(catalog, product, tmp_path)
    assert parts["train"]["age"].isna().any()
    fills = {feature.name: feature.fill for feature in dataset.transform.features}
    train = parts["train"]
    assert fills["age"] == np.median(train["age"].dropna())
    assert fills["city"] == train["city"].value_counts().index[0]
    assert fills["joined"] == pd.Timestamp("2021-05-01").timestamp() * 1e6
    inputs, _ = dataset.load("train")
    assert np.isfinite(inputs).all()
    missing = dataset.transform.apply_columns({"age": [None], "income": [1.0], "city": [None], "joined": [None]})
    same = {"age": [fills["age"]], "income": [1.0], "city": [fills["city"]], "joined": ["2021-05-01T00:00"]}
    np.testing.assert_array_equal(missing, dataset.transform.apply_columns(same))


@pytest.mark.parametrize("method", ["iqr", "zscore"])
def test_outliers_are_refused_or_clipped_by_the_training_rows(catalog: Catalog, tmp_path: Path, method: str):
    """Limits come from the training split, and rows of every split are held against them."""
    rows = people(2000)
    rows.loc[[10, 500, 900], "income"] = 1e9
    files = {"p.csv": csv_bytes(rows)}
    rule = {"method": method, "limit": 5.0}
    refused = run(catalog, files, config(columns={"income": {"outliers": rule}}))
    found = [(row, reason) for row, column, reason, _ in reasons(catalog, refused) if column == "income"]
    assert {(11, "outlier"), (501, "outlier"), (901, "outlier")} <= set(found)
    facts = refused.manifest.content.facts
    assert facts["read"] == facts["kept"] + facts["rejected"]
    clipped = run(catalog, files, config(columns={"income": {"outliers": rule | {"action": "clip"}}}))
    assert clipped.manifest.content.facts["kept"] == 2000
    dataset, parts = frames(catalog, clipped, tmp_path)
    (feature,) = [feature for feature in dataset.transform.features if feature.name == "income"]
    train = parts["train"]["income"]
    if method == "iqr":
        first, third = np.quantile(train, [0.25, 0.75])
        assert feature.high == pytest.approx(third + 5 * (third - first))
    else:
        assert feature.high == pytest.approx(train.mean() + 5 * train.std(ddof=0))
    ages = np.full(2, 40.0)
    inputs = dataset.transform.apply_columns({"age": ages, "income": [feature.high, 1e12]})
    np.testing.assert_array_equal(inputs[0], inputs[1])


def test_texts_are_normalised_before_they_are_compared(catalog: Catalog, tmp_path: Path):
    """One spelling of each character, no control characters, single spaces: what looks the same is the same."""
    spellings = ["São Paulo", "Sa\u0303o Paulo", "  São\t Paulo ", "São \x07Paulo", "SÃO PAULO"]
    rows = people(300).assign(city=[spellings[number % 5] for number in range(300)])
    rule = {"type": "category", "text": ["lower", "whitespace", "control", "nfc"]}
    product = run(catalog, {"p.parquet": parquet_bytes(rows)}, config(features=["age", "city"], columns={"city": rule}))
    _, parts = frames(catalog, product, tmp_path)
    assert set(pd.concat(parts.values())["city"]) == {"são paulo"}


def test_nothing_sensitive_is_in_the_artifact(catalog: Catalog):
    """Dropped, masked or hashed: no file of the artifact holds a name, not even in rows that were refused or torn."""
    rows = people(400).assign(other=lambda frame: frame["name"] + "x", third=lambda frame: frame["name"] + "y")
    body = csv_bytes(rows.astype({"age": object}).assign(age=lambda frame: frame["age"].where(frame.index != 3, "old")))
    body += b"Secretperson9999,1\n" + b"30,1.5,Lima,2020-01-01,True,Secretperson\xff,a,b,1\n"
    rules = {
        "name": {"sensitive": "hash", "unique": True},
        "other": {"sensitive": "mask"},
        "third": {"sensitive": "drop"},
    }
    chosen = config(columns=rules, keep=["name", "other"])
    product = run(catalog, {"p.csv": body}, chosen, KEY)
    manifest = product.manifest
    assert manifest.content.facts["rejected"] == 3
    everything = b"".join(info_body for info_body in _bodies(catalog, product))
    assert b"ecretperson" not in everything
    assert b"53656372657470" not in everything  # the same in hexadecimal
    assert b"***" in everything


def _bodies(catalog: Catalog, product: Product) -> list[bytes]:
    """Every file, Parquet unpacked."""
    bodies = [catalog.store.get(f"{product.ref.uri}/manifest.json")]
    for name in product.manifest.content.files:
        body = catalog.read(product.ref, name)
        if name.endswith(".parquet"):
            body += parquet.read_table(BytesIO(body)).to_pandas().to_csv().encode()
        bodies.append(body)
    return bodies


def test_a_hash_needs_its_key(catalog: Catalog, tmp_path: Path):
    """Equal values have equal hashes under one key and others under another; without a key nothing begins."""
    files = {"p.csv": csv_bytes(people(300).assign(name="A" + people(300)["city"]))}
    chosen = config(keep=["name"], columns={"name": {"sensitive": "hash"}})
    one, other = (run(catalog, files, chosen, key) for key in (KEY, KEY[::-1]))
    names = [
        pd.concat(frames(catalog, product, tmp_path / product.ref.digest)[1].values())["name"]
        for product in (one, other)
    ]
    assert [part.nunique() for part in names] == [3, 3]
    assert not set(names[0]) & set(names[1])
    for key in (None, b"short"):
        with pytest.raises(ConfigError, match="MODELYARD_SENSITIVE_KEY: column 'name' is to be hashed"):
            run(catalog, files, chosen, key)


def test_the_schema_that_was_found_can_be_edited_and_given_back(catalog: Catalog):
    """`schema.yaml` is a preset's part: given as the config it makes the same rows."""
    files = {"p.csv": csv_bytes(people(300))}
    first = run(catalog, files, config(columns=TYPES))
    written = yaml.safe_load(catalog.read(first.ref, "schema.yaml"))["preprocess"]
    assert written["features"] == FEATURES
    assert {name: rule["type"] for name, rule in written["columns"].items()} == {
        "age": "number", "income": "number", "city": "category", "joined": "date", "member": "boolean",
    }  # fmt: skip
    second = run(catalog, files, PreprocessConfig.model_validate(written))
    names = [name for name in first.manifest.content.files if name.endswith("parquet")]
    assert [first.manifest.content.files[name] for name in names] == [
        second.manifest.content.files[name] for name in names
    ]


# -- splits -------------------------------------------------------------------------------------------------------


def test_stratified_splits_meet_the_fractions_in_each_class(catalog: Catalog, tmp_path: Path):
    """To within two rows, small classes too; rows that come later move none that were there."""
    rows = people(1000)
    rows["label"] = np.where(np.arange(1000) % 50 == 0, 9, rows["label"])
    chosen = config(split={"train": 0.7, "validation": 0.1, "test": 0.2, "method": "stratified"})
    small = frames(catalog, run(catalog, {"1.csv": csv_bytes(rows)}, chosen), tmp_path / "small")[1]
    more = csv_bytes(people(500, seed=5))
    large = frames(catalog, run(catalog, {"1.csv": csv_bytes(rows), "2.csv": more}, chosen), tmp_path / "large")[1]
    for label, count in rows["label"].value_counts().items():
        for split, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
            assert abs((small[split]["label"] == label).sum() - share * count) <= 2
    for split in SPLITS:
        assert set(small[split]["income"]) <= set(large[split]["income"])


def test_splits_by_time(catalog: Catalog, tmp_path: Path):
    """Training ends before validation begins, and that before testing does."""
    split = {"method": "time", "time_column": "joined", "validation_from": "2022-01-01", "test_from": "2022-08-01"}
    _, parts = frames(catalog, run(catalog, {"p.csv": csv_bytes(people())}, config(split=split)), tmp_path)
    assert parts["train"]["joined"].max() < pd.Timestamp("2022-01-01") <= parts["validation"]["joined"].min()
    assert parts["validation"]["joined"].max() < pd.Timestamp("2022-08-01") <= parts["test"]["joined"].min()


def test_keys_that_leak_are_named(catalog: Catalog):
    """A value that occurs in two splits is an error, unless it is the identity that keeps its rows together."""
    rows = people().assign(name=[f"p{number % 40}" for number in range(600)])
    files = {"p.csv": csv_bytes(rows)}
    with pytest.raises(DataError, match=r"\d+ values of 'name' occur in more than one split.*preprocess\.identity"):
        run(catalog, files, config(split={"disjoint": ["name"]}))
    product = run(catalog, files, config(split={"disjoint": ["name"]}, identity=["name"]))
    assert product.manifest.content.facts["kept"] == 600


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"columns": {"age": {"nulls": "value"}}}, "`fill` and `nulls: value` go together"),
        ({"columns": {"age": {"range": [3, 1]}}}, "lies above"),
        ({"columns": {"age": {"type": "category", "range": [1, 2]}}}, "are for numbers"),
        ({"columns": {"age": {"sensitive": "hash", "values": ["a"]}}}, "becomes a text"),
        ({"columns": {"age": {"sensitive": "drop"}}, "features": ["age"]}, "cannot be used"),
        ({"columns": {"label": {"sensitive": "hash"}}}, "neither protected"),
        ({"split": {"method": "time"}}, "needs time_column"),
        ({"split": {"validation_from": "2020-01-01"}}, "belong to split.method time"),
        ({"split": {"method": "stratified"}, "identity": ["name"]}, "choose one"),
        ({"nulls": "value"}, "write it under `columns`"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(wrong: dict, sentence: str):
    """Before anything is read."""
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        config(**wrong)


def test_rules_for_no_column_are_refused(catalog: Catalog):
    """A misspelt name would otherwise be a rule that never holds."""
    files = {"p.csv": csv_bytes(people(100))}
    with pytest.raises(ConfigError, match=r"preprocess\.columns: 'agee' is no column of the data"):
        run(catalog, files, config(columns={"agee": {"unique": True}}))
    with pytest.raises(DataError, match="column 'agee' is missing"):
        run(catalog, files, config(columns={"agee": {"type": "number"}}))


def test_dates_are_read_in_their_common_forms(catalog: Catalog, tmp_path: Path):
    """ISO with and without a time, slashes, dots, a time zone: one moment each."""
    forms = ["2021-03-04", "2021-03-04 00:00", "2021-03-04T00:00:00", "2021/03/04", "04.03.2021"]
    rows = people(200).assign(joined=[forms[number % 5] for number in range(200)])
    product = run(catalog, {"p.csv": csv_bytes(rows)}, config(keep=["joined"], columns={"joined": {"type": "date"}}))
    _, parts = frames(catalog, product, tmp_path)
    moments = set(pd.concat(parts.values())["joined"].dt.to_pydatetime())
    assert {moment.replace(tzinfo=UTC) for moment in moments} == {datetime(2021, 3, 4, tzinfo=UTC)}
