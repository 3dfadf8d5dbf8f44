"""The same preprocessing as a chunked pandas script: python -m benchmarks.peers.preprocess_pandas IN OUT FORM."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.util import hash_pandas_object
from pyarrow import parquet

from benchmarks.tables import HIGH, LOW, NUMBERS

CHUNK_ROWS = 200_000


def main(source: str, out: Path, form: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    num_train, total, squared = 0, np.zeros(len(NUMBERS)), np.zeros(len(NUMBERS))
    for number, (file, first, chunk) in enumerate(_chunks(source, form)):
        reason = pd.Series("", index=chunk.index)
        for name in NUMBERS:
            parsed = pd.to_numeric(chunk[name], errors="coerce")
            missing = chunk[name].isna() | (chunk[name] == "")
            reason = reason.mask((reason == "") & missing, f"{name} null")
            reason = reason.mask((reason == "") & parsed.isna(), f"{name} not a number")
            reason = reason.mask((reason == "") & ~parsed.between(LOW, HIGH), f"{name} out of range")
            chunk[name] = parsed
        bad = reason != ""
        rejected = pd.DataFrame({"file": file, "row": np.flatnonzero(bad) + first, "reason": reason[bad]})
        rejected.to_parquet(out / f"rejected-{number:04d}.parquet")
        good = chunk[~bad]
        hashes = hash_pandas_object(good, index=False)  # ty: ignore[not-callable]  (its stub is empty)
        fresh = []
        for row in hashes:
            fresh.append(row not in seen)
            seen.add(row)
        good, shares = good[fresh], hashes[fresh] % 100
        for split, here in {
            "train": shares < 80,
            "validation": (shares >= 80) & (shares < 90),
            "test": shares >= 90,
        }.items():
            good[here].to_parquet(out / f"{split}-{number:04d}.parquet", compression="zstd")
        train = good.loc[shares < 80, list(NUMBERS)].to_numpy()
        num_train, total, squared = num_train + len(train), total + train.sum(axis=0), squared + (train**2).sum(axis=0)
    mean = total / num_train
    print(num_train, mean, np.sqrt(squared / num_train - mean**2))


def _chunks(source: str, form: str) -> Iterator[tuple[str, int, pd.DataFrame]]:
    for path in sorted(Path(source).glob(f"*.{form}")):
        first = 1
        parts = (
            pd.read_csv(path, chunksize=CHUNK_ROWS, dtype=dict.fromkeys(NUMBERS, str))
            if form == "csv"
            else (part.to_pandas() for part in parquet.ParquetFile(path).iter_batches(CHUNK_ROWS))
        )
        for part in parts:
            yield path.name, first, part
            first += len(part)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
