"""Texts that are nearly the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS, Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess import near as near_module
from modelyard.preprocess.minhash import NOTHING, band_rows, signatures, similarity
from modelyard.preprocess.near import Pairs, near_pairs
from modelyard.preprocess.page import report_page
from modelyard.preprocess.sections import NearConfig
from modelyard.settings import Settings
from tests.workbench import ORIGIN, PROPERTY, csv_bytes, own_catalog, upload

WORDS = ["".join(np.random.default_rng(seed).choice(list("abcdefghijkl"), 6)) for seed in range(900)]
NEAR = NearConfig(column="text")


def text(seed: int, words: int = 60) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def changed(of: str, word: int) -> str:
    """The same with one word in sixty another one: nine in ten shingles stay."""
    words = of.split(" ")
    words[word] = "zzzz"
    return " ".join(words)


def jaccard(one: str, other: str, width: int = 9) -> float:
    sets = [{part[at : at + width] for at in range(len(part) - width + 1)} for part in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@PROPERTY
@given(seed=st.integers(0, 10**6), gone=st.integers(0, 50), words=st.sampled_from([5, 60, 200]))
def test_signatures_estimate_the_share_of_shingles(seed: int, gone: int, words: int):
    """To within five deviations of 128 numbers, for long texts and for those of fewer shingles than numbers."""
    one = text(seed, words)
    other = " ".join(one.split(" ")[: max(1, words - gone)]) + " " + text(seed + 1, 3)
    found = signatures(pl.Series([one, other]), 9)
    share = jaccard(one, other)
    assert similarity(found[:1], found[1:])[0] == pytest.approx(share, abs=5 * 0.5 / 128**0.5)


def test_a_signature_is_its_texts_alone():
    """The same alone and in any batch; case and runs of white space do not count; no text is like no text."""
    texts = ["", None, "short", "Ünïcödé " * 9, *(text(seed) for seed in range(40)), text(7, 90_000)]
    whole = signatures(pl.Series(texts, dtype=pl.String), 9)
    parts = [signatures(pl.Series([one], dtype=pl.String), 9) for one in texts]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert (whole[:2] == NOTHING).all()
    shouted = signatures(pl.Series([text(3).upper().replace(" ", " \n ")]), 9)
    np.testing.assert_array_equal(shouted[0], whole[4 + 3])
    assert similarity(whole[4:5], whole[5:6])[0] < 0.1


def test_bands_miss_few_at_the_threshold():
    """One pair in a hundred or less, with as few false meetings as that allows."""
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0):
        rows = band_rows(threshold)
        assert (1 - threshold**rows) ** (128 // rows) <= 0.01
    assert band_rows(0.5) < band_rows(0.8) < band_rows(0.95)


def pairs_of(texts: list[str | None], folder: Path, **config: Any) -> Pairs:
    path = folder / "signatures.bin"
    path.write_bytes(signatures(pl.Series(texts, dtype=pl.String), 9).astype("<u2").tobytes())
    return near_pairs(path, NEAR.model_copy(update=config), folder / "bands")


def test_near_texts_are_found_and_no_others(tmp_path: Path):
    """Each with the first that it is near; what has no text is near nothing."""
    texts: list[str | None] = [text(seed) for seed in range(300)]
    texts[40], texts[41], texts[170] = changed(texts[3] or "", 10), changed(texts[3] or "", 30), texts[99]
    texts[200] = texts[201] = None
    found = pairs_of(texts, tmp_path)
    assert found.later.tolist() == [40, 41, 170]
    assert found.earlier.tolist() == [3, 3, 99]
    assert found.similarity[2] == 1
    assert found.similarity[0] == pytest.approx(jaccard(texts[3] or "", texts[40] or ""), abs=0.1)
    assert not list(tmp_path.glob("bands*"))
    assert pairs_of([], tmp_path).later.tolist() == []


def test_a_beginning_that_many_share_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows of one band are compared with those of it that lead, at most so many; who is near is found all the same."""
    monkeypatch.setattr(near_module, "MOST_LEADERS", 4)
    start = text(0, 45)
    texts: list[str | None] = [f"{start} {text(seed, 30)}" for seed in range(1, 80)]
    texts += [changed(texts[5] or "", 70), changed(texts[6] or "", 71)]
    found = pairs_of(texts, tmp_path, threshold=0.9)
    assert {(79, 5), (80, 6)} <= set(zip(found.later.tolist(), found.earlier.tolist(), strict=True))


# -- in a data set ----------------------------------------------------------------------------------------


def frame(seeds: range, repeats: dict[int, str]) -> pd.DataFrame:
    """Rows with a number, a class and a text; ``repeats``: row -> its text instead."""
    texts = [repeats.get(at, text(seed)) for at, seed in enumerate(seeds)]
    numbers = [float(seed) for seed in seeds]
    return pd.DataFrame({"a": numbers, "kind": [seed % 2 for seed in seeds], "text": texts})


FIRST = frame(range(120), {50: changed(text(10), 5)})
SECOND = frame(range(200, 320), {0: changed(text(20), 7), 60: text(30)})
# Row 3 is nearest to a row that goes itself; row 4 shares half of its text with another.
THIRD = frame(range(400, 520), {3: changed(changed(text(20), 7), 40), 4: text(404, 30) + " " + text(405, 30)})
FILES = {"0.csv": csv_bytes(FIRST), "1.csv": csv_bytes(SECOND), "2.csv": csv_bytes(THIRD)}
CONFIG: dict[str, Any] = {"target": "kind", "near_duplicates": {"column": "text"}, "partition_bytes": 1}


def run(catalog: Catalog, config: dict[str, Any], files: dict[str, bytes] = FILES) -> Product:
    source = snapshot(catalog, upload(catalog.store, files), ORIGIN)
    return preprocess(catalog, source.ref, PreprocessConfig.model_validate(config), ORIGIN)


def rows_of(catalog: Catalog, product: Product, folder: Path) -> list[pd.DataFrame]:
    dataset = Dataset.fetch(catalog, product.ref, folder, SPLITS)
    return [pd.concat(dataset.frames(split), ignore_index=True) for split in SPLITS]


def test_of_texts_that_are_nearly_the_same_the_earliest_stays(catalog: Catalog, settings: Settings, tmp_path: Path):
    """Over all files: counted among the duplicates, shown in the report; the same rows however files are cut, and the
    digest of a catalog that knew nothing after a file came."""
    before = run(catalog, CONFIG, {name: FILES[name] for name in ("0.csv", "2.csv")})
    assert before.manifest.content.facts["duplicates"] == 2
    grown, fresh = run(catalog, CONFIG), run(own_catalog(settings), CONFIG)
    assert grown.manifest.provenance.measurements == {"partitions": 3, "partitions_found": 2}
    assert grown.ref.digest == fresh.ref.digest
    facts = grown.manifest.content.facts
    assert {name: facts[name] for name in ("read", "kept", "duplicates")} == {"read": 360, "kept": 356, "duplicates": 4}
    found = rows_of(catalog, grown, tmp_path / "each")
    gone = {float(value) for value in (*FIRST.a, *SECOND.a, *THIRD.a)} - set(pd.concat(found).a)
    assert gone == {50, 200, 260, 403}
    whole = run(catalog, CONFIG | {"partition_bytes": 10**9})
    for one, other in zip(found, rows_of(catalog, whole, tmp_path / "whole"), strict=True):
        pd.testing.assert_frame_equal(one, other)
    report = json.loads(catalog.read(grown.ref, "report.json"))
    near = report["near_duplicates"]
    assert near["rows"] == 4
    shown = {(line["earlier_row"], line["later_row"]) for line in near["examples"]}
    assert {("0.csv row 11", "0.csv row 51"), ("0.csv row 21", "1.csv row 1")} <= shown
    example = next(line for line in near["examples"] if line["later_row"] == "0.csv row 51")
    assert example["earlier_text"] == text(10)[:200]
    assert example["later_text"] == changed(text(10), 5)[:200]
    assert "Nearly the same" in report_page("t", report)


@pytest.mark.soak
def test_near_texts_of_a_stratified_set(catalog: Catalog):
    """Where splits are dealt out last, the same rows go, and the report finds their texts; leaks are found as well."""
    stratified = CONFIG | {"split": {"method": "stratified"}}
    product = run(catalog, stratified)
    assert product.manifest.content.facts["duplicates"] == 4
    near = json.loads(catalog.read(product.ref, "report.json"))["near_duplicates"]
    assert changed(text(10), 5)[:200] in [line["later_text"] for line in near["examples"]]
    with pytest.raises(DataError, match="nearly the same as one in another split"):
        run(catalog, stratified | {"near_duplicates": {"column": "text", "action": "check"}})


def test_another_threshold_reads_no_file_again(catalog: Catalog):
    """Signatures are kept; what is near is worked out from them."""
    run(catalog, CONFIG)
    other = run(catalog, CONFIG | {"near_duplicates": {"column": "text", "threshold": 0.99}})
    assert other.manifest.provenance.measurements["partitions_found"] == 3
    assert other.manifest.content.facts["duplicates"] == 1  # the one whose text is the same to the letter


def test_near_texts_in_two_splits_end_the_run(catalog: Catalog):
    """With `check` nothing is dropped; the sentence names two of the rows and their splits. Kept together, they pass."""
    checked = {"column": "text", "action": "check"}
    with pytest.raises(
        DataError, match=r"texts of 'text' are nearly the same .*: \d\.csv row \d+ in \w+, \d\.csv row \d+ in"
    ):
        run(catalog, CONFIG | {"near_duplicates": checked})
    lone = {"0.csv": csv_bytes(frame(range(120), {}))}
    assert run(catalog, CONFIG | {"near_duplicates": checked}, lone).manifest.content.facts["duplicates"] == 0


@pytest.mark.parametrize(
    ("near", "says"),
    [
        ({}, "say the column of texts"),
        ({"column": "text", "threshold": 0.2}, "greater than or equal to 0.5"),
        ({"column": "text", "shingle_bytes": 40}, "less than or equal to 16"),
        ({"column": "text", "colum": "x"}, "colum"),
    ],
)
def test_a_wrong_rule_is_refused(near: dict[str, Any], says: str):
    """By its name, before anything is read."""
    with pytest.raises(ValidationError, match=says):
        PreprocessConfig.model_validate(CONFIG | {"near_duplicates": near})


def test_what_holds_no_texts_is_said(catalog: Catalog):
    """A column of numbers, a protected one, one that is not there; a language model's texts need no name."""
    with pytest.raises(ConfigError, match=r"preprocess\.near_duplicates\.column: 'a' holds numbers"):
        run(catalog, CONFIG | {"features": ["a"], "near_duplicates": {"column": "a"}})
    with pytest.raises(ValidationError, match="neither protected"):
        PreprocessConfig.model_validate(CONFIG | {"columns": {"text": {"sensitive": "hash"}}})
    with pytest.raises(DataError, match="column 'txt' is missing"):
        run(catalog, CONFIG | {"near_duplicates": {"column": "txt"}})
    language = {"task": "language_modelling", "target": "words", "near_duplicates": {"threshold": 0.7}}
    assert PreprocessConfig.model_validate(language).near_duplicates == NearConfig(column="words", threshold=0.7)
