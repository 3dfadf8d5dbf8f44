"""What shards are as files."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from modelyard.preprocess.shards import write_table


def test_dictionaries_only_where_values_repeat(tmp_path: Path):
    """Columns of few values have one, those of ever new values none; pandas, pyarrow and DuckDB read either; bytes
    follow from the rows.
    """
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "pixel": rng.integers(0, 17, 20_000).astype(np.float64),
            "measured": rng.normal(size=20_000),
            "city": rng.choice(["Lima", "Oslo"], 20_000),
            "code": [f"{number:08x}" for number in rng.integers(0, 2**32, 20_000)],
            "gaps": pa.nulls(20_000, pa.float64()),
        }
    )
    for name in ("once", "again"):
        write_table(table, tmp_path / name)
    write_table(table.slice(0, 0), tmp_path / "empty")
    group = parquet.read_metadata(tmp_path / "once").row_group(0)
    columns = [group.column(at) for at in range(group.num_columns)]
    with_dictionary = {column.path_in_schema for column in columns if column.has_dictionary_page}
    assert {"pixel", "city"} <= with_dictionary
    assert not {"measured", "code"} & with_dictionary
    assert parquet.read_table(tmp_path / "once").equals(table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "once"), table.to_pandas())
    assert duckdb.read_parquet(str(tmp_path / "once")).fetchall() == [tuple(row.values()) for row in table.to_pylist()]
    assert parquet.read_table(tmp_path / "empty").num_rows == 0
    assert (tmp_path / "once").read_bytes() == (tmp_path / "again").read_bytes()
