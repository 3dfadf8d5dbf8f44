"""Every format and packing gives the same rows; what is broken says where."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from modelyard.catalog import Catalog, Product
from modelyard.errors import DataError, ObjectChanged
from modelyard.preprocess import PreprocessConfig, csv_rows, preprocess, snapshot
from modelyard.preprocess import sources as sources_module
from modelyard.preprocess.formats import FileKind, ReadConfig
from modelyard.preprocess.locations import stream
from modelyard.preprocess.snapshot import read_snapshot
from tests.workbench import ORIGIN, blobs, csv_bytes, parquet_bytes, upload

CONFIG = PreprocessConfig(target="kind", max_rejected_fraction=0.2)
FRAME = blobs(200)


def run(catalog: Catalog, files: Mapping[str, bytes], config: PreprocessConfig = CONFIG) -> Product:
    return preprocess(catalog, snapshot(catalog, upload(catalog.store, files), ORIGIN).ref, config, ORIGIN)


def rows_of(product: Product) -> dict[str, str]:
    files = product.manifest.content.files
    return {name: entry.sha256 for name, entry in files.items() if name.endswith(".parquet")}


def quarantine(catalog: Catalog, product: Product) -> list[tuple]:
    frame = pl.read_parquet(BytesIO(catalog.read(product.ref, "rejected/000000.parquet")))
    return frame.sort("file", "row").select("row", "column", "reason").rows()


def json_bytes(frame: pd.DataFrame) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in frame.to_dict("records")).encode()


def arrow_bytes(frame: pd.DataFrame, opener: Any = ipc.new_file) -> bytes:
    table, buffer = pa.Table.from_pandas(frame, preserve_index=False), BytesIO()
    with opener(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


FORMS: dict[str, bytes] = {
    "rows.csv": csv_bytes(FRAME),
    "rows.csv.gz": gzip.compress(csv_bytes(FRAME)),
    "rows.tsv": FRAME.to_csv(index=False, sep="\t").encode(),
    "rows.jsonl": json_bytes(FRAME),
    "rows.jsonl.gz": gzip.compress(json_bytes(FRAME)),
    "rows.parquet": parquet_bytes(FRAME),
    "rows.arrow": arrow_bytes(FRAME),
    "rows.arrows": arrow_bytes(FRAME, ipc.new_stream),
    "odd.csv": parquet_bytes(FRAME),
    "bom.csv": b"\xef\xbb\xbf" + csv_bytes(FRAME),
}


def test_every_format_makes_one_data_set(catalog: Catalog, tmp_path: Path):
    """CSV, TSV, JSON Lines, Parquet, Arrow files and streams, packed or not, one that is called wrong, one with a BOM."""
    forms = dict(FORMS)
    for name in ("rows.csv", "rows.jsonl"):
        with pa.CompressedOutputStream(str(tmp_path / name), "zstd") as packed:
            packed.write(FORMS[name])
        forms[f"{name}.zst"] = (tmp_path / name).read_bytes()
    products = {name: run(catalog, {name: body}) for name, body in forms.items()}
    expected = rows_of(products["rows.csv"])
    assert {name: rows_of(product) == expected for name, product in products.items()} == dict.fromkeys(forms, True)


def test_formats_may_be_mixed_and_files_many(catalog: Catalog):
    """Two hundred files of five formats are one data set, their rows in the order of the names."""
    makers = [(".csv", csv_bytes), (".jsonl", json_bytes), (".parquet", parquet_bytes), (".arrow", arrow_bytes)]
    files = {}
    for number in range(200):
        suffix, maker = makers[number % 4]
        files[f"{number:03d}{suffix}"] = maker(blobs(10, seed=number))
    product = run(catalog, files)
    assert product.manifest.content.facts["kept"] == 2000
    together = pd.concat([blobs(10, seed=number) for number in range(200)])
    train = pd.read_parquet(BytesIO(catalog.read(product.ref, "train/000000.parquet")))
    order = {value: position for position, value in enumerate(together["a"])}
    assert [order[value] for value in train["a"]] == sorted(order[value] for value in train["a"])


def test_local_folders_patterns_and_files(catalog: Catalog, tmp_path: Path):
    """`file://` takes what `s3://` takes, and the same bytes are the same snapshot."""
    (tmp_path / "deep").mkdir()
    files = {"a.csv": csv_bytes(FRAME), "deep/b.parquet": parquet_bytes(blobs(50, seed=1))}
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
    (tmp_path / "notes.txt").write_text("not data")
    here = snapshot(catalog, f"file://{tmp_path}", ORIGIN)
    there = snapshot(catalog, upload(catalog.store, files), ORIGIN)
    assert here.ref.digest == there.ref.digest
    assert preprocess(catalog, here.ref, CONFIG, ORIGIN).manifest.content.facts["read"] == 250
    for pattern, names in {
        "*.csv": ["a.csv"],
        "**/*.parquet": ["deep/b.parquet"],
        "deep/b.parquet": ["b.parquet"],
    }.items():
        _, sources = read_snapshot(catalog, snapshot(catalog, f"file://{tmp_path}/{pattern}", ORIGIN).ref)
        assert [source.name for source in sources] == names


def test_odd_names_of_files(catalog: Catalog, tmp_path: Path):
    """Question marks, percent signs and spaces in a path are part of it; a relative path is refused."""
    path = tmp_path / "what? 50%20 #1.csv"
    path.write_bytes(csv_bytes(FRAME))
    ref = snapshot(catalog, f"file://{tmp_path}", ORIGIN).ref
    assert preprocess(catalog, ref, CONFIG, ORIGIN).manifest.content.facts["read"] == 200
    with pytest.raises(DataError, match="has to be absolute"):
        snapshot(catalog, "file://rows.csv", ORIGIN)


def test_columns_may_come_late_in_json(catalog: Catalog):
    """A key that the first thousand lines lack is a column all the same."""
    frame = blobs(1500).astype(object)
    lines = json_bytes(frame).splitlines(keepends=True)
    lines[:1200] = [line.replace(b'"b"', b'"c"') for line in lines[:1200]]
    config = CONFIG.model_copy(update={"features": ["a", "b"], "nulls": "mean"})
    assert run(catalog, {"p.jsonl": b"".join(lines)}, config).manifest.content.facts["kept"] == 1500


def test_the_user_has_the_last_word_on_the_format(catalog: Catalog):
    """A single object may be called anything; format, delimiter and encoding can be said."""
    latin = blobs(200).assign(who="José").to_csv(index=False, sep=";").encode("latin-1")
    uri = upload(catalog.store, {"export.dat": latin})
    ref = snapshot(catalog, f"{uri}/export.dat", ORIGIN).ref
    with pytest.raises(DataError, match=r"export\.dat: neither name nor content say what it is; set preprocess\.read"):
        preprocess(catalog, ref, CONFIG, ORIGIN)
    read = ReadConfig(format="csv", delimiter=";", encoding="latin-1")
    config = CONFIG.model_copy(update={"read": read, "identity": ["who"]})
    wide = FRAME.to_csv(index=False).encode("utf-16")
    spelt = CONFIG.model_copy(update={"read": ReadConfig(encoding="utf-16")})
    assert rows_of(run(catalog, {"p.csv": wide}, spelt)) == rows_of(run(catalog, {"p.csv": csv_bytes(FRAME)}))
    with pytest.raises(DataError, match="split is empty"):  # everybody is José: read as text, and one identity
        preprocess(catalog, ref, config, ORIGIN)


# -- bad input: nothing lost, and nothing silent ------------------------------------------------------------------

LINES = csv_bytes(FRAME).splitlines(keepends=True)
BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "a truncated gz": ({"p.csv.gz": gzip.compress(csv_bytes(blobs(20_000)))[:-300]}, r"p\.csv\.gz: cannot be read as csv.*[Tt]runcated"),
    "a truncated gz of JSON": ({"p.jsonl.gz": gzip.compress(json_bytes(FRAME))[:-20]}, r"p\.jsonl\.gz: cannot be read as jsonl.*[Tt]runcated"),
    "a gz that is none": ({"p.csv.gz": csv_bytes(FRAME)}, r"p\.csv\.gz: called \.gz but not packed so"),
    "packed Parquet": ({"p.parquet.gz": gzip.compress(parquet_bytes(FRAME))}, r"packed inside, not as a whole; unpack it"),
    "UTF-16": ({"p.csv": csv_bytes(FRAME).decode().encode("utf-16")}, r"p\.csv: the text is UTF-16; convert it to UTF-8, or set"),
    "zero bytes": ({"1.csv": csv_bytes(FRAME), "2.csv": b""}, r"2\.csv: the file has no bytes; remove it, or upload it again"),
    "a column named twice": ({"p.csv": b"a,b,a,kind\n1,2,3,0\n"}, r"p\.csv: column 'a' occurs more than once; rename"),
    "a column gone from a later file": (
        {"1.csv": csv_bytes(FRAME), "2.jsonl": json_bytes(FRAME.drop(columns="b"))}, r"2\.jsonl: column 'b' is missing"),
    "a field of 50 MB": (
        {"p.csv": b"".join([*LINES[:50], b'"', b"x" * 50_000_000, b'",1,2\n'])}, r"p\.csv: cannot be read as csv.*a row is longer than 8 MB, or a quote is never closed"),
    "a line of 50 MB": ({"p.jsonl": json_bytes(FRAME) + b'{"a": "' + b"x" * 50_000_000}, r"p\.jsonl: a line is longer than 8 MB"),
    "a quote never closed": (
        {"p.csv": b"".join([*LINES[:50], b'"1,2,3\n', *(b"1,2,0\n" for _ in range(2_000_000))])}, r"p\.csv: row 50 goes over 2000001 lines and does not fit: a quote is never closed"),
    "half a Parquet file": ({"p.parquet": parquet_bytes(FRAME)[: -len(parquet_bytes(FRAME)) // 2]}, r"p\.parquet: cannot be read as parquet"),
    "half an Arrow file": ({"p.arrow": arrow_bytes(FRAME)[:-200]}, r"p\.arrow: cannot be read as arrow"),
    "words in JSON": ({"p.jsonl": b"hello\nworld\n"}, r"column 'kind' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_broken_file_ends_the_run_with_its_name(catalog: Catalog, case: str):
    """What cannot be counted row by row is said in one sentence, and nothing is committed."""
    files, sentence = BROKEN[case]
    ref = snapshot(catalog, upload(catalog.store, files), ORIGIN).ref
    with pytest.raises(DataError, match=sentence):
        preprocess(catalog, ref, CONFIG, ORIGIN)
    assert list(catalog.store.list(f"{catalog.store.root}/artifacts/dataset")) == []


def with_lines(**inserted: bytes) -> bytes:
    """The CSV with lines put in so that they become the row numbers given as ``_7``."""
    lines = list(LINES)
    for place, line in inserted.items():
        lines.insert(int(place[1:]), line)
    return b"".join(lines)


COUNTED: dict[str, tuple[bytes, list[tuple]]] = {
    "mixed encodings": (
        with_lines(_3=b"1,2,caf\xe9\n", _9=b"\xff\xfe,2,0\n"), [(3, "kind", "not UTF-8"), (9, "a", "not UTF-8")]),
    "ragged rows": (
        with_lines(_1=b"1\n", _2=b"1,2\n", _201=b"1,2,3,4,5\n"),
        [(1, "", "1 fields instead of 3"), (2, "", "2 fields instead of 3"), (201, "", "5 fields instead of 3")]),
    "a header in the middle": (with_lines(_100=LINES[0]), [(100, "", "the header again")]),
    "NaN and infinities": (
        with_lines(_1=b"NaN,1,0\n", _2=b"inf,1,0\n", _3=b"1,-Infinity,0\n", _4=b"1,,0\n", _5=b"nan ,1,0\n"),
        [(1, "a", "null"), (2, "a", "not finite"), (3, "b", "not finite"), (4, "b", "null"), (5, "a", "null")]),
    "drift of types": (
        with_lines(_150=b"high,1,0\n", _160=b"1,0x1f,0\n", _170=b"1,2,one\n"),
        [(150, "a", "not a number"), (160, "b", "not a number"), (170, "kind", "not an integer")]),
    "a break in a quoted field": (with_lines(_5=b'"1\n2",1,0\n', _7=b"1,2\n"), [(5, "a", "not a number"), (7, "", "2 fields instead of 3")]),
}  # fmt: skip


@pytest.mark.parametrize("case", list(COUNTED))
def test_a_bad_row_is_counted_where_it_stands(catalog: Catalog, case: str):
    """Number, column and reason; every other row is kept, and the sum is the rows read."""
    body, expected = COUNTED[case]
    product = run(catalog, {"p.csv": body})
    assert quarantine(catalog, product) == expected
    facts = product.manifest.content.facts
    assert (facts["read"], facts["kept"], facts["rejected"]) == (200 + len(expected), 200, len(expected))


def test_bad_lines_of_json_are_counted(catalog: Catalog):
    """Broken lines, other values than objects, bytes that are no text; blank lines are no rows but count as lines."""
    lines = json_bytes(FRAME).splitlines(keepends=True)
    lines[2:2] = [
        b"{broken\n",
        b"[1, 2, 3]\n",
        b"\n",
        b'{"a": "\xff", "b": 1, "kind": 0}\n',
        b'{"a": {"x": 1}, "b": 1, "kind": 0}\n',
    ]
    product = run(catalog, {"p.jsonl": b"".join(lines)})
    assert quarantine(catalog, product) == [
        (3, "", "not a JSON object"),
        (4, "", "not a JSON object"),
        (6, "", "not UTF-8"),
        (7, "a", "not a number"),
    ]
    assert product.manifest.content.facts["read"] == 204
    assert product.manifest.content.facts["kept"] == 200


def test_types_may_drift_between_files(catalog: Catalog):
    """A column that is text in one file, integer or float in another is one column; order and further columns are free."""
    files = {
        "1.csv": csv_bytes(FRAME),
        "2.parquet": parquet_bytes(blobs(50, seed=1).astype({"kind": float})),
        "3.jsonl": json_bytes(blobs(50, seed=2).astype(str)[["kind", "b", "a"]].assign(more="x")),
        "4.parquet": parquet_bytes(blobs(50, seed=3).astype({"a": "float32", "kind": "int8"})),
    }
    assert run(catalog, files).manifest.content.facts["kept"] == 350


def test_rows_are_numbered_across_batches(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However the parser cuts the file, bad rows keep their numbers, at the borders of batches too."""
    monkeypatch.setattr(csv_rows, "BATCH_BYTES", 1000)
    rng = np.random.default_rng(0)
    lines, expected = [LINES[0]], []
    for number in range(1, 400):
        bad = rng.random() < 0.3
        lines.append(b"1,2\n" if bad else LINES[1 + number % 200])
        expected += [(number, "", "2 fields instead of 3")] if bad else []
    lines.append(b"x,1,1\n")
    (tmp_path / "p.csv").write_bytes(b"".join(lines))
    kind = FileKind(format="csv", delimiter=",")
    assert len(list(sources_module.batches(tmp_path / "p.csv", "p", kind, ["a"], ReadConfig()))) > 3
    config = CONFIG.model_copy(update={"max_rejected_fraction": 1.0})
    product = run(catalog, {"p.csv": b"".join(lines)}, config)
    assert quarantine(catalog, product) == [*expected, (400, "a", "not a number")]


def test_an_object_that_changes_while_it_is_listed_is_read_anew(catalog: Catalog):
    """The ETag of the listing has to be that of the bytes: a transient error, whose retry lists again."""
    uri = upload(catalog.store, {"p.csv": csv_bytes(FRAME)})
    info = catalog.store.head(f"{uri}/p.csv")
    catalog.store.put(info.uri, csv_bytes(blobs(10)))
    with pytest.raises(ObjectChanged, match=r"p\.csv: replaced while it was read"):
        list(stream(catalog.store, info))


def test_a_local_file_that_changes_while_it_is_read_is_refused(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rows appended in the middle of a run are in no snapshot."""
    path = tmp_path / "p.csv"
    path.write_bytes(csv_bytes(FRAME))
    ref = snapshot(catalog, f"file://{path}", ORIGIN).ref
    read = sources_module._batches

    def slow(*arguments: Any):
        yield from read(*arguments)
        with path.open("ab") as file:
            file.write(LINES[1])
        os.utime(path, (1, 1))

    monkeypatch.setattr(sources_module, "_batches", slow)
    with pytest.raises(DataError, match=r"p\.csv: changed while it was read"):
        preprocess(catalog, ref, CONFIG, ORIGIN)


def test_parquet_of_many_rows_per_group_comes_in_batches(tmp_path: Path):
    """One row group of 200,000 rows is read in pieces, numbered through."""
    path = tmp_path / "p.parquet"
    parquet.write_table(pa.table({"a": np.arange(200_000.0)}), path, row_group_size=200_000)
    kind = FileKind(format="parquet")
    parts = list(sources_module.batches(path, "p", kind, ["a"], ReadConfig()))
    assert len(parts) > 2
    assert np.concatenate([part.numbers for part in parts]).tolist() == list(range(1, 200_001))
