"""Plain text and JSON Lines of texts."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS, Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from tests.workbench import ORIGIN, upload

BASE: dict[str, Any] = {
    "target": "label",
    "features": ["text"],
    "columns": {"text": {"type": "category"}},
    "transform": {"categories": "hashing"},
    "split": {"method": "stratified"},
}
DESCRIPTIONS = {
    name: files("sklearn.datasets.descr").joinpath(f"{name}.rst").read_bytes() for name in ("iris", "wine_data")
}
BY_FOLDER = {f"{name}/about.txt": body for name, body in DESCRIPTIONS.items()}


def run(catalog: Catalog, bodies: Mapping[str, bytes], **fields: Any) -> Product:
    config = PreprocessConfig.model_validate(BASE | fields)
    return preprocess(catalog, snapshot(catalog, upload(catalog.store, bodies), ORIGIN).ref, config, ORIGIN)


def rows_of(catalog: Catalog, product: Product, folder: Path) -> pd.DataFrame:
    dataset = Dataset.fetch(catalog, product.ref, folder, SPLITS)
    return pd.concat([frame for split in SPLITS for frame in dataset.frames(split)])


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_texts_of_real_documents(catalog: Catalog, tmp_path: Path, unit: str):
    """scikit-learn's descriptions of its data sets: every line or paragraph that says something, the folder as class."""
    product = run(catalog, BY_FOLDER, read={"text_rows": unit})
    separator = "\n" if unit == "line" else "\n\n"
    expected = {
        (name, part.strip("\n"))
        for name, body in DESCRIPTIONS.items()
        for part in body.decode().replace("\n \n", "\n\n").split(separator)
        if part.strip()
    }
    rows = rows_of(catalog, product, tmp_path)
    assert set(zip(rows["label"], rows["text"], strict=True)) == expected
    assert product.manifest.content.facts["kept"] == len(expected)


def test_a_file_may_be_a_row(catalog: Catalog, tmp_path: Path):
    """As document collections come: a folder for each class, a file for each text."""
    texts = {
        f"{kind}/{number}.txt": f"{kind} no {number}\nend".encode() for kind in ("ham", "spam") for number in range(20)
    }
    rows = rows_of(catalog, run(catalog, texts, read={"text_rows": "file"}), tmp_path)
    assert set(rows["text"]) == {body.decode() for body in texts.values()}
    assert set(rows["label"]) == {"ham", "spam"}


def test_what_is_not_in_the_encoding_is_refused(catalog: Catalog, tmp_path: Path):
    """Its line is counted, with place and bytes; the encoding said, it is read; a mark at the start is no text."""
    good = [f"zeile {number}".encode() for number in range(40)]
    body = b"\xef\xbb\xbf" + b"\r\n".join([*good[:7], "Grüße".encode("latin-1"), *good[7:]])
    bodies = {"a/x.txt": body, "b/y.txt": b"\n".join(good)}
    product = run(catalog, bodies)
    lines = pl.read_parquet(io.BytesIO(catalog.read(product.ref, "rejected/000000.parquet")))
    assert lines.rows() == [("a/x.txt", 8, "text", "not utf-8", "Grüße".encode("latin-1").hex())]
    assert set(rows_of(catalog, product, tmp_path / "utf-8")["text"]) == {line.decode() for line in good}
    latin = rows_of(catalog, run(catalog, bodies, read={"encoding": "latin-1"}), tmp_path / "latin-1")
    assert "Grüße" in set(latin["text"])


@pytest.mark.parametrize(
    ("body", "read", "error", "sentence"),
    [
        ("Hallo".encode("utf-16"), {}, DataError, "the text is UTF-16"),
        (b"x" * (9 * 2**20), {}, DataError, "a line is longer than 8 MB"),
        (b"x\n" * (5 * 2**20), {"text_rows": "file"}, DataError, "longer than 8 MB; read it by line"),
        (b"x\n", {"encoding": "klingon"}, ConfigError, "'klingon' is no encoding"),
        (b"", {}, DataError, "has no bytes"),
    ],
)
def test_what_is_no_text_is_said(catalog: Catalog, body: bytes, read: dict, error: type[Exception], sentence: str):
    """File, fault, what to do."""
    with pytest.raises(error, match=sentence):
        run(catalog, BY_FOLDER | {"a/x.txt": body}, read=read)


def test_json_lines_of_texts(catalog: Catalog, tmp_path: Path):
    """Line feeds, quotes, emoji and long texts come out as they went in."""
    texts = ['a "quoted" word', "two\nlines", "naïve 🦊", "x" * 100_000, *(f"text {number}" for number in range(60))]
    body = "\n".join(json.dumps({"text": text, "label": number % 2}) for number, text in enumerate(texts))
    rows = rows_of(catalog, run(catalog, {"texts.jsonl": body.encode()}), tmp_path)
    assert set(rows["text"]) == set(texts)
