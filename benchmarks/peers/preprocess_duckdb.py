"""The same preprocessing as a DuckDB script: python -m benchmarks.peers.preprocess_duckdb IN OUT FORM MEMORY_MB."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb

from benchmarks.tables import HIGH, LOW, NUMBERS

SPLITS = {"train": (0, 80), "validation": (80, 90), "test": (90, 100)}


def main(source: str, out: Path, form: str, memory_mb: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    db = duckdb.connect(str(out / "work.duckdb"))
    db.execute(f"SET memory_limit='{memory_mb}MB'; SET threads=2; SET temp_directory='{out}/spill'")
    files = sorted(str(path) for path in Path(source).glob(f"*.{form}"))
    db.execute("CREATE SEQUENCE arrival")
    for number, file in enumerate(files):
        reader = f"read_csv('{file}', all_varchar=true)" if form == "csv" else f"read_parquet('{file}')"
        casts = ", ".join(f"try_cast({name} AS DOUBLE) AS {name}" for name in NUMBERS)
        reasons = " ".join(
            f"WHEN {name} IS NULL OR {name} = '' THEN '{name} null'"
            f" WHEN try_cast({name} AS DOUBLE) IS NULL THEN '{name} not a number'"
            f" WHEN NOT try_cast({name} AS DOUBLE) BETWEEN {LOW} AND {HIGH} THEN '{name} out of range'"
            for name in NUMBERS
        )
        select = (
            f"SELECT {number} AS file, CASE {reasons} END AS reason, id::BIGINT AS id, {casts}, city, code,"
            f" y::BIGINT AS y FROM {reader}"
        )
        db.execute(f"{'CREATE TABLE rows AS' if number == 0 else 'INSERT INTO rows'} {select}")
    db.execute(f"COPY (SELECT file, rowid, reason FROM rows WHERE reason IS NOT NULL) TO '{out}/rejected.parquet'")
    columns = ", ".join(("id", *NUMBERS, "city", "code", "y"))
    # first occurrence stays: the smallest rowid of each group of equal rows
    db.execute(
        f"CREATE TABLE kept AS SELECT {columns}, min(rowid) AS arrival, hash({columns}) % 100 AS part"
        f" FROM rows WHERE reason IS NULL GROUP BY {columns}"
    )
    for split, (low, high) in SPLITS.items():
        db.execute(
            f"COPY (SELECT {columns} FROM kept WHERE part >= {low} AND part < {high} ORDER BY arrival)"
            f" TO '{out}/{split}.parquet' (COMPRESSION zstd)"
        )
    moments = ", ".join(f"avg({name}), stddev_pop({name})" for name in NUMBERS)
    print(db.execute(f"SELECT count(*), {moments} FROM kept WHERE part < 80").fetchone())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
