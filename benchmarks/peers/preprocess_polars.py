"""The same preprocessing as a polars script (streaming): python -m benchmarks.peers.preprocess_polars IN OUT FORM."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

from benchmarks.tables import HIGH, LOW, NUMBERS

SPLITS = {"train": (0, 80), "validation": (80, 90), "test": (90, 100)}


def main(source: str, out: Path, form: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    columns = ["id", *NUMBERS, "city", "code", "y"]
    if form == "csv":
        rows = pl.scan_csv(f"{source}/*.csv", schema=dict.fromkeys(columns, pl.String), row_index_name="row")
    else:
        rows = pl.scan_parquet(f"{source}/*.parquet", row_index_name="row")
    parsed = {name: pl.col(name).cast(pl.Float64, strict=False) for name in NUMBERS}
    reason = pl.coalesce(
        *(
            pl.when(pl.col(name).is_null() | (pl.col(name) == ""))
            .then(pl.lit(f"{name} null"))
            .when(parsed[name].is_null())
            .then(pl.lit(f"{name} not a number"))
            .when(~parsed[name].is_between(LOW, HIGH))
            .then(pl.lit(f"{name} out of range"))
            for name in NUMBERS
        )
    )
    checked = rows.with_columns(reason.alias("reason"), **parsed)
    checked.filter(pl.col("reason").is_not_null()).select("row", "reason").sink_parquet(out / "rejected.parquet")
    kept = (
        checked.filter(pl.col("reason").is_null())
        .with_columns(pl.col("id").cast(pl.Int64), pl.col("y").cast(pl.Int64))
        .drop("reason")
        .unique(columns, keep="first", maintain_order=True)
        .with_columns((pl.struct(columns).hash() % 100).alias("part"))
    )
    kept.sink_parquet(out / "kept.parquet", compression="lz4")
    again = pl.scan_parquet(out / "kept.parquet")
    for split, (low, high) in SPLITS.items():
        again.filter(pl.col("part").is_between(low, high, closed="left")).select(columns).sink_parquet(
            out / f"{split}.parquet", compression="zstd"
        )
    train = again.filter(pl.col("part") < 80)
    both = [statistic for name in NUMBERS for statistic in (pl.mean(name).alias(f"m{name}"), pl.std(name, ddof=0))]
    print(train.select(pl.len(), *both).collect(engine="streaming").row(0))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
