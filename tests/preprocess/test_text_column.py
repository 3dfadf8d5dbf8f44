"""A column of texts: stored as text, read through the tokenizer of the network that will see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from modelyard.catalog import Catalog
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.preprocess import PreprocessConfig
from modelyard.transform import TextTransform, read_row_transform
from tests.textbench import reviews, text_config, text_dataset, tokenizer_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("pretrained") / "tiny")


def test_rows_are_what_the_networks_own_tokenizer_makes_of_texts(catalog: Catalog, source: Path, tmp_path: Path):
    """The same numbers, cut off where the network ends and not where the file says; nothing
    stands behind a text; the data set holds the texts as they were, and its transform alone reads them."""
    from tokenizers import Tokenizer

    ref = text_dataset(catalog, text_config(f"file://{source}"))
    dataset = Dataset.fetch(catalog, ref, tmp_path, ["test"])
    transform = read_row_transform((tmp_path / "transform.json").read_text())
    assert isinstance(transform, TextTransform)
    assert transform.max_length == 24  # of tokenizer_config.json, not the 9 of tokenizer.json
    texts = [*next(dataset.frames("test"))["text"], " ".join(["lovely"] * 50), ""]
    reader = Tokenizer.from_file(str(source / "tokenizer.json"))
    reader.no_padding()
    reader.enable_truncation(24)
    expected = [reader.encode(text).ids for text in texts]
    rows = transform.rows({"text": texts})
    assert [[int(token) for token in row if token >= 0] for row in rows] == expected
    assert rows.shape[1] == max(map(len, expected))


def test_the_end_of_a_very_long_text_is_not_looked_at(catalog: Catalog, source: Path):
    """Sixty-four characters for every token that is read, and not the megabytes behind them."""
    transform = read_row_transform(
        catalog.read(text_dataset(catalog, text_config(f"file://{source}"), reviews(60)), "transform.json")
    )
    assert isinstance(transform, TextTransform)
    spaces = " " * 24 * 64
    assert transform.tokens([spaces + "lovely"]).tolist() == transform.tokens([""]).tolist()
    assert transform.tokens([spaces[:-7] + "lovely"]).tolist() == transform.tokens(["lovely"]).tolist()


def test_the_data_set_depends_on_the_tokenizer_and_not_on_its_place(catalog: Catalog, source: Path, tmp_path: Path):
    """In the bucket or on the disk: one data set. Another length: another one."""
    frame = reviews(60)
    for path in source.iterdir():
        catalog.store.put(f"{catalog.store.root}/networks/tiny/{path.name}", path.read_bytes())
    here = text_dataset(catalog, text_config(f"file://{source}"), frame)
    there = text_dataset(catalog, text_config(f"{catalog.store.root}/networks/tiny/"), frame)
    assert here.digest == there.digest
    assert text_dataset(catalog, text_config(f"file://{source}", max_length=8), frame).digest != here.digest


def test_rows_without_a_text_are_refused(catalog: Catalog, source: Path):
    """In the quarantine while the data set is made; by name when somebody asks for an answer."""
    frame = pd.concat([reviews(60), pd.DataFrame({"text": [None], "mood": ["good"]})])
    ref = text_dataset(catalog, text_config(f"file://{source}"), frame)
    assert catalog.manifest(ref).content.facts["rejected"] == 1
    transform = read_row_transform(catalog.read(ref, "transform.json"))
    with pytest.raises(DataError, match="column 'text' has no text in row 1"):
        transform.rows({"text": ["fine", None]})
    with pytest.raises(DataError, match="columns are missing: text"):
        transform.rows({"words": ["fine"]})


@pytest.mark.parametrize(("tokens", "words"), [
    ([[5, 5_000]], "a token's number lies outside"),
    ([[-1, -1]], "a row has no token"),
    ([[5] * 25], "a row has 25 tokens, the model reads 24 at most"),
])  # fmt: skip
def test_tokens_that_the_network_cannot_read_are_refused(catalog: Catalog, source: Path, tokens: Any, words: str):
    """Before they are computed with: an index beyond the table would bring an engine down."""
    ref = text_dataset(catalog, text_config(f"file://{source}"), reviews(60))
    with pytest.raises(DataError, match=words):
        read_row_transform(catalog.read(ref, "transform.json")).apply(np.array(tokens))


@pytest.mark.parametrize(("update", "words"), [
    ({"transform": {}}, "needs transform.text.source"),
    ({"features": ["text", "length"]}, "read by a network that reads nothing else"),
    ({"columns": {"text": {"type": "text", "nulls": "most_frequent"}}}, "neither filled in"),
    ({"columns": {}}, "for a column of type text"),
])  # fmt: skip
def test_what_a_text_cannot_be_is_refused(source: Path, update: dict[str, Any], words: str):
    """Said when the preset is read."""
    config = text_config(f"file://{source}")
    with pytest.raises(ValidationError, match=words):
        PreprocessConfig.model_validate(config.model_dump() | update)


def test_a_folder_that_cannot_be_read_is_named(catalog: Catalog, source: Path, tmp_path: Path):
    """No tokenizer, a broken one, more tokens than the network takes, a relative path."""
    with pytest.raises(ConfigError, match="max_length: 100 is more than the 24 tokens"):
        text_dataset(catalog, text_config(f"file://{source}", max_length=100))
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"has no tokenizer\.json; AutoTokenizer\.from_pretrained"):
        text_dataset(catalog, text_config(f"file://{tmp_path}"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: tokenizers cannot read it"):
        text_dataset(catalog, text_config(f"file://{tmp_path}"))
    with pytest.raises(ConfigError, match="is no folder"):
        text_dataset(catalog, text_config("some/where"))
