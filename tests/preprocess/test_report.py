"""The report: what the columns held, where rows went, and what changed."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd

from modelyard.catalog import Catalog, Product
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess.history import difference, remember
from modelyard.preprocess.page import report_page
from tests.workbench import ORIGIN, blobs, csv_bytes, parquet_bytes, upload

CONFIG = PreprocessConfig.model_validate(
    {
        "target": "kind",
        "keep": ["who", "note"],
        "columns": {"a": {"range": [-100, 100]}, "b": {"nulls": "mean"}, "who": {"sensitive": "mask"}},
    }
)


def rows(count: int = 400) -> pd.DataFrame:
    frame = blobs(count).assign(who="Ann", note=lambda frame: np.where(frame.index % 4 == 0, "<b>", "plain"))
    frame.loc[[3, 5], "b"] = np.nan
    frame.loc[7, "a"] = 1e6
    return frame


def run(catalog: Catalog, files: dict[str, bytes]) -> Product:
    return preprocess(catalog, snapshot(catalog, upload(catalog.store, files), ORIGIN).ref, CONFIG, ORIGIN)


def report_of(catalog: Catalog, product: Product) -> dict[str, Any]:
    return json.loads(catalog.read(product.ref, "report.json"))


def test_texts_that_do_not_repeat_are_told_by_their_length(catalog: Catalog):
    """400 notes, each another one of 10 to 409 characters: a histogram of lengths, and none of them on the page."""
    frame = rows()
    frame["note"] = ["n" * (10 + at) for at in range(len(frame))]
    report = report_of(catalog, run(catalog, {"p.csv": csv_bytes(frame)}))
    told = report["profile"]["before"]["note"]
    assert (told["characters"]["low"], told["characters"]["high"], len(told["characters"]["shares"])) == (10, 409, 20)
    page = report_page("notes", report)
    assert "10 to 409 characters" in page
    assert "nnnnnnnnnn" not in page


def test_columns_are_profiled_before_and_after(catalog: Catalog):
    """Rows, nulls, range and distribution as pandas counts them; of a masked column no value."""
    frame = rows()
    profile = report_of(catalog, run(catalog, {"p.csv": csv_bytes(frame)}))["profile"]
    before, after = profile["before"]["a"], profile["after"]["a"]
    assert (before["rows"], before["nulls"], before["high"]) == (400, 0, 1e6)
    good = frame.drop(7)
    assert (after["rows"], after["low"], after["high"]) == (399, good["a"].min(), good["a"].max())
    assert profile["after"]["b"]["nulls"] == 2
    counts, _ = np.histogram(good["a"], bins=20)
    np.testing.assert_allclose(after["histogram"]["shares"], counts / 399, atol=1e-6)
    assert profile["before"]["note"]["frequent"] == [["plain", 0.75], ["<b>", 0.25]]
    assert "frequent" not in profile["after"]["who"]
    assert "characters" not in profile["after"]["who"]


def test_how_files_are_cut_does_not_show(catalog: Catalog):
    """The sample behind a histogram is the same for one file and for ten, CSV and Parquet, beyond its size too."""
    frame = rows(20_000)
    parts = np.array_split(np.arange(len(frame)), 10)
    one = run(catalog, {"p.csv": csv_bytes(frame)})
    ten = run(catalog, {f"{number}.parquet": parquet_bytes(frame.iloc[part]) for number, part in enumerate(parts)})
    assert report_of(catalog, one) == report_of(catalog, ten)


class Page(HTMLParser):
    """Collects what a browser would show, and everything it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_shows_it_and_needs_nothing_else(catalog: Catalog):
    """The sum of the rows, every column, the top reasons; values of the data are text, not markup."""
    report = report_of(catalog, run(catalog, {"p.csv": csv_bytes(rows())}))
    page = Page()
    page.feed(report_page("Data of <mine>", report, [{"what": "files", "before": 1, "now": 2}]))
    text = " ".join(page.texts)
    assert "400 rows read = 399 kept + 1 rejected + 0 duplicates" in text
    for shown in ("out of range", "Data of <mine>", "<b> 25%", "Since the data set before", "kind"):
        assert shown in text
    assert page.fetched == []
    assert "b" not in page.tags
    assert page.tags.count("svg") == 6


def test_what_changed_since_the_data_set_before(catalog: Catalog):
    """Files, rows, classes and columns against the last other data set of that place; none for the first."""
    files = {"1.csv": csv_bytes(rows()), "2.csv": csv_bytes(blobs(50, seed=4).assign(who="x", note="y"))}
    first = run(catalog, files)
    assert remember(catalog, "s3://here", "kind", first.ref) is None
    assert difference(catalog, first.ref, None) == []
    second = run(catalog, {"1.csv": csv_bytes(rows(600)), "3.csv": files["2.csv"]})
    for _ in range(2):  # the same again does not become its own predecessor
        previous = remember(catalog, "s3://here", "kind", second.ref)
        assert previous == first.ref
    table = {line["what"]: (line["before"], line["now"]) for line in difference(catalog, second.ref, first.ref)}
    assert table["files added"][1] == table["files gone"][1] == table["files changed"][1] == 1
    assert table["rows read"] == (450, 650)
    assert remember(catalog, "s3://elsewhere", "kind", second.ref) is None


def test_a_data_set_that_was_swept_is_no_error(catalog: Catalog):
    """The history may name what is gone."""
    product = run(catalog, {"p.csv": csv_bytes(rows())})
    gone = product.ref.model_copy(update={"uri": f"{catalog.store.root}/artifacts/dataset/none"})
    assert difference(catalog, product.ref, gone) == []
