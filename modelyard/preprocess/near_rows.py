"""Near duplicates of a data set: which rows of each partition go, what people see of it, and whether splits share any."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pyarrow import parquet

from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS
from modelyard.errors import DataError
from modelyard.preprocess.near import SIGNATURES_FILE, Pairs, near_pairs
from modelyard.preprocess.partition_files import PLACES_FILE, UNSPLIT
from modelyard.preprocess.sections import NearConfig
from modelyard.preprocess.whole import Part

MOST_EXAMPLES = 10
SHOWN_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class NearRows:
    """What was found.

    Attributes:
        pairs: rows numbered over all parts.
        starts: number of each part's first row, and behind them the number of all rows, (parts + 1,).
    """

    config: NearConfig
    pairs: Pairs
    starts: np.ndarray

    def positions(self, at: int) -> np.ndarray:
        """Rows of a part that are near an earlier one, ascending, uint32."""
        first, behind = np.searchsorted(self.pairs.later, self.starts[at : at + 2])
        return (self.pairs.later[first:behind] - self.starts[at]).astype(np.uint32)

    def part_of(self, number: int) -> tuple[int, int]:
        """Which part a row is in, and its position there."""
        at = int(np.searchsorted(self.starts, number, side="right")) - 1
        return at, int(number - self.starts[at])


def find_near(catalog: Catalog, config: NearConfig, parts: Sequence[Part], scratch: Path) -> NearRows:
    """Compare the signatures of all parts."""
    together, counts = scratch / SIGNATURES_FILE, []
    with together.open("wb") as whole:
        for part in parts:
            first, folder = part.forms[0], scratch / "signatures"
            catalog.fetch(first.ref, folder, [SIGNATURES_FILE], first.manifest)
            with (folder / SIGNATURES_FILE).open("rb") as file:
                before = whole.tell()
                shutil.copyfileobj(file, whole, 2**20)
                counts.append((whole.tell() - before) // 256)
            (folder / SIGNATURES_FILE).unlink()
    try:
        pairs = near_pairs(together, config, scratch / "bands")
    finally:
        together.unlink()
    return NearRows(config=config, pairs=pairs, starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def check_near_leaks(catalog: Catalog, near: NearRows, parts: Sequence[Part], scratch: Path) -> None:
    """Raise if two texts that are nearly the same lie in different splits.

    Raises:
        DataError: how many, one of them, and what to do.
    """
    numbers = np.unique(np.concatenate([near.pairs.later, near.pairs.earlier]))
    splits = _splits(catalog, near, parts, numbers, scratch)
    apart = [
        (later, earlier)
        for later, earlier in zip(near.pairs.later.tolist(), near.pairs.earlier.tolist(), strict=True)
        if splits[later] is not None and splits[earlier] is not None and splits[later] != splits[earlier]
    ]
    if not apart:
        return
    where = ", ".join(f"{_place(catalog, near, parts, row, scratch)} in {splits[row]}" for row in reversed(apart[0]))
    raise DataError(
        f"{len(apart)} texts of {near.config.column!r} are nearly the same as one in another split, so the test is known"
        f" from training: {where}; set preprocess.near_duplicates.action to drop, or name what they share in"
        " preprocess.identity"
    )


def near_report(catalog: Catalog, near: NearRows, parts: Sequence[Part], scratch: Path) -> dict[str, Any]:
    """For `report.json`: how many texts are nearly the same as an earlier one, and some of them beside it."""
    num_pairs = len(near.pairs.later)
    chosen = np.unique(np.linspace(0, num_pairs - 1, min(MOST_EXAMPLES, num_pairs)).astype(int))
    examples = []
    for at in chosen:
        later, earlier = int(near.pairs.later[at]), int(near.pairs.earlier[at])
        examples.append(
            {
                "similarity": round(float(near.pairs.similarity[at]), 4),
                **{
                    f"{name}_{fact}": value
                    for name, row in {"earlier": earlier, "later": later}.items()
                    for fact, value in {
                        "row": _place(catalog, near, parts, row, scratch),
                        "text": _text(catalog, near, parts, row, scratch),
                    }.items()
                },
            }
        )
    return {**near.config.model_dump(mode="json"), "rows": num_pairs, "examples": examples}


# -- details ----------------------------------------------------------------------------------------------


def _splits(
    catalog: Catalog, near: NearRows, parts: Sequence[Part], numbers: np.ndarray, scratch: Path
) -> dict[int, str | None]:
    """The split that each row lies in at the end; None for one that went for another reason."""
    found: dict[int, str | None] = {}
    for at, part in enumerate(parts):
        here = numbers[(numbers >= near.starts[at]) & (numbers < near.starts[at + 1])]
        if not len(here):
            continue
        rows = _places(catalog, part.forms[0], scratch)[here - near.starts[at]]
        latest = _places(catalog, part.latest, scratch).rename({"split": "last"})
        joined = rows.join(latest, on=["file", "number"], how="left", maintain_order="left")
        codes = joined["last"].to_list()
        found |= {int(row): None if code is None else SPLITS[code] for row, code in zip(here, codes, strict=True)}
    return found


def _places(catalog: Catalog, form: Product, scratch: Path) -> pl.DataFrame:
    folder = scratch / "places"
    catalog.fetch(form.ref, folder, [PLACES_FILE], form.manifest)
    return pl.DataFrame(pl.from_arrow(parquet.read_table(folder / PLACES_FILE)))


def _place(catalog: Catalog, near: NearRows, parts: Sequence[Part], number: int, scratch: Path) -> str:
    """``name.csv row 17``."""
    at, position = near.part_of(number)
    _, file, row = _places(catalog, parts[at].forms[0], scratch).row(position)
    return f"{parts[at].partition.sources[file].name} row {row}"


def _text(catalog: Catalog, near: NearRows, parts: Sequence[Part], number: int, scratch: Path) -> str:
    """The first characters of a row's text, from the shard it was first written to."""
    at, position = near.part_of(number)
    form = parts[at].forms[0]
    codes = _places(catalog, form, scratch)["split"].to_numpy()
    shards = [name for name in form.manifest.content.files if name.partition("/")[0] in (*SPLITS, UNSPLIT)]
    is_split = not any(name.startswith(f"{UNSPLIT}/") for name in shards)
    folder = SPLITS[codes[position]] if is_split else UNSPLIT
    left = int((codes[:position] == codes[position]).sum()) if is_split else position
    for name in sorted(name for name in shards if name.startswith(f"{folder}/")):
        catalog.fetch(form.ref, scratch / "examples", [name], form.manifest)
        column = parquet.read_table(scratch / "examples" / name, columns=[near.config.column]).column(0)
        (scratch / "examples" / name).unlink()
        if left < len(column):
            return str(column[left].as_py())[:SHOWN_CHARACTERS]
        left -= len(column)
    raise AssertionError(f"row {position} of {form.ref} lies in no shard")
