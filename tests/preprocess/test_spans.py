"""Spans of texts: kept with the texts, moved along with cleaning, refused with a reason where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from hypothesis import strategies
from pydantic import ValidationError

from modelyard.catalog import Catalog
from modelyard.datasets import Dataset
from modelyard.errors import DataError
from modelyard.preprocess import PreprocessConfig
from modelyard.preprocess.clean import normalised
from modelyard.preprocess.followed import follow
from modelyard.targets import encoded_targets
from modelyard.token_labels import NO_TAG
from modelyard.transform import TextTransform, read_row_transform
from tests.tagbench import as_frame, spans_jsonl, spans_of, tag_config, tag_dataset, tagged_words
from tests.textbench import tokenizer_folder
from tests.workbench import PROPERTY, csv_bytes, parquet_bytes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("pretrained") / "tiny")


def rows_of(catalog: Catalog, ref: Any, folder: Path) -> pd.DataFrame:
    dataset = Dataset.fetch(catalog, ref, folder, ["train", "validation", "test"])
    frames = [frame for split in ("train", "validation", "test") for frame in dataset.frames(split)]
    return pd.concat(frames).sort_values(["text", "spans"]).reset_index(drop=True)


def test_every_way_to_write_spans_is_the_same_data_set(catalog: Catalog, source: Path, tmp_path: Path):
    """Objects in JSON Lines, structs in Parquet, JSON in CSV; words with tags in Parquet and in JSON Lines: the same rows,
    and a target whose classes are the tags."""
    words = tagged_words(40)
    spans = as_frame([spans_of(*row) for row in words])
    as_json = spans.assign(spans=spans["spans"].map(json.dumps))
    tags = pd.DataFrame(words, columns=["text", "spans"])
    found = []
    for name, body, form in [
        ("a.jsonl", spans_jsonl(40), "spans"),
        ("a.parquet", parquet_bytes(spans), "spans"),
        ("a.csv", csv_bytes(as_json), "spans"),
        ("b.parquet", parquet_bytes(tags), "tags"),
        ("b.jsonl", tags.to_json(orient="records", lines=True).encode(), "tags"),
    ]:
        ref = tag_dataset(catalog, tag_config(f"file://{source}", spans={"form": form}), {name: body})
        found.append(rows_of(catalog, ref, tmp_path / name))
        target = json.loads(catalog.read(ref, "target.json"))
        written = yaml.safe_load(catalog.read(ref, "schema.yaml"))["preprocess"]
        assert PreprocessConfig.model_validate(written) == tag_config(f"file://{source}", spans={"form": form})
        assert target["classes"] == ["O", "B-bad", "I-bad", "B-good", "I-good", "B-odd", "I-odd"]
    for other in found[1:]:
        pd.testing.assert_frame_equal(other, found[0])


def reader_of(catalog: Catalog, source: Path, **more: Any) -> TextTransform:
    ref = tag_dataset(catalog, tag_config(f"file://{source}", **more), {"a.jsonl": spans_jsonl(40)})
    found = read_row_transform(catalog.read(ref, "transform.json"))
    assert isinstance(found, TextTransform)
    return found


def test_the_first_token_of_a_word_carries_its_tag(catalog: Catalog, source: Path, tmp_path: Path):
    """Marks and what a word goes on with carry none; with ``every`` each token of it does, and a span may end in a word."""
    ref = tag_dataset(catalog, tag_config(f"file://{source}"), {"a.jsonl": spans_jsonl(40)})
    dataset = Dataset.fetch(catalog, ref, tmp_path, ["train"])
    spans = [{"start": 4, "end": 14, "label": "good"}]
    frame = pd.DataFrame({"text": ["the Lovely bob,", "a"], "spans": [json.dumps(spans), "[]"]})
    tags = encoded_targets(dataset.transform, dataset.target, frame)
    # [CLS] the lovely b ##o ##b [UNK] [SEP]
    assert tags.tolist() == [[NO_TAG, 0, 3, 4, NO_TAG, NO_TAG, 0, NO_TAG], [NO_TAG, 0, *[NO_TAG] * 6]]
    whole = reader_of(catalog, source, spans={"subwords": "every"})
    inside = frame.assign(spans=[json.dumps([{**spans[0], "end": 12}]), "[]"])
    assert encoded_targets(whole, dataset.target, inside)[0].tolist() == [NO_TAG, 0, 3, 4, 0, 0, 0, NO_TAG]
    with pytest.raises(DataError, match="does not begin and end with tokens"):
        encoded_targets(dataset.transform, dataset.target, inside)


def test_spans_that_cannot_be_kept_are_refused_with_their_place(catalog: Catalog, source: Path, tmp_path: Path):
    """Each with file, row, column and reason; the rows around them stay."""
    long = " ".join(["the"] * 40)
    bad: list[tuple[str, Any, str]] = [
        ("the film", [{"start": 4, "end": 9, "label": "good"}], "span out of the text's range"),
        ("the film", [{"start": 4, "end": 4, "label": "good"}], "span out of the text's range"),
        (
            "the film",
            [{"start": 0, "end": 8, "label": "bad"}, {"start": 4, "end": 8, "label": "good"}],
            "spans overlap",
        ),
        ("the film", [{"start": 4, "end": 8, "label": "great"}], "unknown label"),
        ("the film", [{"start": 5, "end": 8, "label": "good"}], "span that does not begin and end with tokens"),
        ("the film", [{"start": 3, "end": 8, "label": "good"}], "span that does not begin and end with tokens"),
        (long, [{"start": 156, "end": 159, "label": "good"}], "span behind the tokens that are read"),
        ("the   film", [{"start": 4, "end": 10, "label": "good"}], "span that cleaning cut"),
        ("the film", [{"start": 4, "stop": 8, "label": "good"}], "not a list of spans"),
        ("the film", [{"start": True, "end": 8, "label": "good"}], "not a list of spans"),
        ("the film", "film", "not a list of spans"),
        ("the film", "[oops", "not a list of spans"),
        ("the film", None, "null"),
    ]
    lines = [json.dumps({"text": text, "spans": spans}).encode() for text, spans, _ in bad]
    body = b"\n".join([*lines, b""]) + spans_jsonl(40)
    config = tag_config(
        f"file://{source}",
        columns={
            "text": {"type": "text", "text": ["whitespace"]},
            "spans": {"values": ["bad", "good", "odd"]},
        },
        max_rejected_fraction=0.5,
    )
    ref = tag_dataset(catalog, config, {"rows.jsonl": body})
    names = [name for name in catalog.manifest(ref).content.files if name.startswith("rejected/")]
    catalog.fetch(ref, tmp_path, names)
    refused = pd.concat([pd.read_parquet(tmp_path / name) for name in names]).sort_values("row")
    assert refused["reason"].tolist() == [reason for _, _, reason in bad]
    assert refused["row"].tolist() == list(range(1, len(bad) + 1))
    assert set(refused["file"]) == {"rows.jsonl"}
    assert set(refused["column"]) == {"spans"}
    rows = json.loads(catalog.read(ref, "report.json"))["rows"]
    assert (rows["rejected"], rows["read"]) == (len(bad), len(bad) + 40)


def test_words_and_tags_that_do_not_fit_are_refused(catalog: Catalog, source: Path):
    """Too few tags, something else than a tag, words that are none; and lists where spans were promised."""
    rows = [
        (["the", "film"], ["O"]),
        (["the"], ["X-good"]),
        (["the"], ["I-"]),
        (["the", ""], ["O", "O"]),
        ("the", ["O"]),
    ]
    body = b"".join(json.dumps({"text": text, "spans": tags}).encode() + b"\n" for text, tags in rows)
    good = pd.DataFrame(tagged_words(40), columns=["text", "spans"])
    files = {"a.jsonl": body + good.to_json(orient="records", lines=True).encode()}
    config = tag_config(f"file://{source}", spans={"form": "tags"}, max_rejected_fraction=0.5)
    told = json.loads(catalog.read(tag_dataset(catalog, config, files), "report.json"))["rejected"]
    assert {one["reason"]: one["rows"] for one in told} == {
        "not one tag for each word": 1,
        "not a BIO tag": 2,
        "not a list of words": 2,
    }
    with pytest.raises(DataError, match=r"holds lists of words; set preprocess\.spans\.form to tags"):
        tag_dataset(catalog, tag_config(f"file://{source}"), {"a.parquet": parquet_bytes(good)})


LETTERS = "aBé\u0301İΣ\u1100\u1161\u11a8\u0327\x00\x1c\t \u2003\u00a0\u0085e\u030a"


@hypothesis.given(
    raw=strategies.text(alphabet=LETTERS, max_size=12),
    steps=strategies.sets(strategies.sampled_from(["nfc", "control", "whitespace", "lower"])),
)
@PROPERTY
def test_spans_move_along_with_cleaning(raw: str, steps: set[Any]):
    """Whatever the steps and characters: a span that was followed holds the cleaned text of its own characters, and every
    character of the cleaned text is accounted for."""
    clean = normalised(pl.Series([raw], dtype=pl.String), list(steps))[0] or ""
    followed = follow(raw, clean, list(steps))
    assert followed is not None
    assert len(followed.sources) == len(clean)
    for start in range(len(raw)):
        for end in range(start + 1, len(raw) + 1):
            if (place := followed.moved(start, end)) is None:
                continue
            own = normalised(pl.Series([raw[start:end]], dtype=pl.String), list(steps))[0] or ""
            found = clean[slice(*place)]
            assert found.replace("\u03c2", "\u03c3").strip() == own.replace("\u03c2", "\u03c3").strip()


def test_cleaned_texts_keep_their_spans(catalog: Catalog, source: Path, tmp_path: Path):
    """Spaces that went and letters that were put together move what is behind them."""
    text = "  the\t\tE\u0301toile  film "
    spans = [{"start": text.index("E"), "end": text.index("E") + 7, "label": "good"}]
    body = json.dumps({"text": text, "spans": spans}).encode() + b"\n" + spans_jsonl(40)
    config = tag_config(f"file://{source}", columns={"text": {"type": "text", "text": ["nfc", "whitespace", "lower"]}})
    rows = rows_of(catalog, tag_dataset(catalog, config, {"a.jsonl": body}), tmp_path)
    kept = rows[rows["text"].str.contains("toile")].iloc[0]
    assert kept["text"] == "the \u00e9toile film"
    assert json.loads(kept["spans"]) == [{"start": 4, "end": 10, "label": "good"}]


def test_a_partition_depends_on_who_reads_its_texts(catalog: Catalog, source: Path):
    """Of the same rows fewer can be kept where fewer tokens are read."""
    files = {"a.jsonl": spans_jsonl(40)}
    config = tag_config(f"file://{source}")
    first = tag_dataset(catalog, config, files)
    shorter = config.model_copy(
        update={"transform": config.transform.model_copy(
            update={"text": config.transform.text.model_copy(update={"max_length": 9})}
        ), "max_rejected_fraction": 0.9}
    )  # fmt: skip
    second = tag_dataset(catalog, shorter, files)
    kept = [json.loads(catalog.read(ref, "report.json"))["rows"]["kept"] for ref in (first, second)]
    assert kept[0] == 40 > kept[1]
    assert np.unique([first.digest, second.digest]).size == 2


@pytest.mark.parametrize(("update", "words"), [
    ({"columns": {}, "features": "*", "transform": {}}, "reads a column of type text"),
    ({"target_values": ["a", "b"]}, "columns.spans.values lists the labels"),
    ({"label": {"mapping": {"a": "b"}}}, "look at one label a row"),
    ({"columns": {"text": {"type": "text"}, "spans": {"text": ["lower"]}}}, "only values and nulls can be said"),
    ({"task": "classification", "spans": {"form": "tags"}}, "spans belongs to task token_classification"),
])  # fmt: skip
def test_what_spans_cannot_be_is_refused(source: Path, update: dict[str, Any], words: str):
    """Said when the preset is read."""
    with pytest.raises(ValidationError, match=words):
        PreprocessConfig.model_validate(tag_config(f"file://{source}").model_dump() | update)
