"""A packaged model over shards of rows.

    batch/<model>/<key>/part-000000.parquet    the answers to the first shard, row by row
    batch/<model>/<key>/done/000000.json       that they are whole, with their sha256 and where they came from
    batch/<model>/<key>/manifest.json          what the whole was made from

The key follows from package, shards and config, so the same work finds what was done. A marker is put after its
answers: a run that was killed anywhere goes on at the first shard without one.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef, Frozen, digest_of
from modelyard.catalog import Catalog, Origin, file_sha256
from modelyard.code_version import code_version
from modelyard.datasets import SPLITS
from modelyard.entities import ENTITIES
from modelyard.errors import DataError, ModelyardError, NotFound
from modelyard.model_package import ModelPackage
from modelyard.predict.config import PredictConfig
from modelyard.predict.shards import Shard, fetch, frames, shards_of_dataset, shards_of_files
from modelyard.retrieval import Items

log = logging.getLogger(__name__)

LIBRARIES = ("numpy", "onnxruntime", "pandas", "pyarrow", "tokenizers")
BATCH_BYTES = 32 * 2**20
ENTITY_TYPE = pa.list_(
    pa.struct(
        [
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("label", pa.string()),
            ("score", pa.float64()),
            ("text", pa.string()),
        ]
    )
)


class Part(Frozen):
    """The answers to one shard. ``source_sha256`` is of the file as it was read."""

    source: str
    source_sha256: str
    uri: str
    sha256: str
    num_rows: int


class Predictions(Frozen):
    """What a batch prediction left behind: Parquet files in a folder, how many rows, and what was there already."""

    uri: str
    num_rows: int
    num_parts: int
    num_reused: int


def predict(
    catalog: Catalog,
    package: ArtifactRef,
    source: ArtifactRef | str,
    config: PredictConfig,
    origin: Origin,
    *,
    model_name: str,
    on_part: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Answer every row of a split of a data set, or of raw files.

    Args:
        package: a ``compressed`` artifact.
        source: a ``dataset`` artifact, or the URI of raw files with the columns that the model takes.
        model_name: names the folder of the answers.
        on_part: told (shards done, shards in all) after each.

    Raises:
        DataError: nothing to predict, a file that cannot be read, or one without a column that the model takes.
        DigestMismatch, ObjectChanged: a file is not the one that was listed.
        NotFound: the package has no such form.
    """
    if package.kind != "compressed":
        raise DataError(f"{package}: predictions are made by a package, which compression makes of a model")
    if isinstance(source, str):
        shards = shards_of_files(catalog.store, source)
    elif config.items:
        shards = [shard for split in SPLITS for shard in shards_of_dataset(catalog, source, split)]
    else:
        shards = shards_of_dataset(catalog, source, config.split)
    version = code_version("modelyard.predict", LIBRARIES)
    key = _key(package, shards, config, version)
    folder = f"{catalog.store.root}/batch/{model_name}/{key}"
    make = _parts
    if config.items and not isinstance(source, str):
        make = _one_part
    parts, num_reused = make(catalog, package, shards, config, folder, on_part)
    lineage = {
        "package": package.model_dump(),
        "source": source if isinstance(source, str) else source.model_dump(),
        "config": config.model_dump(mode="json"),
        "code_version": version,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": origin.commit,
        "flow_run_id": origin.flow_run_id,
        "mlflow_run_id": origin.mlflow_run_id,
        "parts": [part.model_dump() for part in parts],
    }
    _put_json(catalog, f"{folder}/manifest.json", lineage)
    num_rows = sum(part.num_rows for part in parts)
    return Predictions(uri=folder, num_rows=num_rows, num_parts=len(parts), num_reused=num_reused)


def _key(package: ArtifactRef, shards: Sequence[Shard], config: PredictConfig, version: str) -> str:
    # Neither the cut into batches nor the threads change an answer.
    chosen = config.model_dump(mode="json", exclude={"batch_rows", "threads"})
    listed = [[shard.uri, shard.state] for shard in shards]
    return digest_of({"package": package.digest, "shards": listed, "config": chosen, "code": version})[:16]


def _parts(
    catalog: Catalog,
    package: ArtifactRef,
    shards: Sequence[Shard],
    config: PredictConfig,
    folder: str,
    on_part: Callable[[int, int], None] | None,
) -> tuple[list[Part], int]:
    """Every part, found or made; and how many were found."""
    parts: list[Part] = []
    num_reused = 0
    with tempfile.TemporaryDirectory(prefix="modelyard-predict-") as scratch:
        opened: ModelPackage | None = None
        for number, shard in enumerate(shards):
            part = _found(catalog, folder, number)
            num_reused += part is not None
            if part is None:
                # Only now: a run that finds everything fetches nothing.
                opened = opened or _open(catalog, package, config, Path(scratch, "package"))
                part = _make(catalog, opened, shard, config, folder, number, Path(scratch))
            parts.append(part)
            if on_part:
                on_part(number + 1, len(shards))
    return parts, num_reused


def _open(catalog: Catalog, package: ArtifactRef, config: PredictConfig, folder: Path) -> ModelPackage:
    catalog.fetch(package, folder)
    opened = ModelPackage.open(folder, config.form or None, config.threads, with_items=config.items)
    if config.items and opened.spec.target.items is None:
        raise DataError(f"{package}: a model for {opened.spec.target.task} makes no vectors of items; retrieval does")
    return opened


def _one_part(
    catalog: Catalog,
    package: ArtifactRef,
    shards: Sequence[Shard],
    config: PredictConfig,
    folder: str,
    on_part: Callable[[int, int], None] | None,
) -> tuple[list[Part], int]:
    """The items of all shards, each once, as one part."""
    if part := _found(catalog, folder, 0):
        return [part], 1
    with tempfile.TemporaryDirectory(prefix="modelyard-predict-") as scratch:
        opened = _open(catalog, package, config, Path(scratch, "package"))
        target, schema = opened.spec.target, opened.spec.target.items
        assert schema, "a package without items was refused"
        columns = [*schema.columns, *config.keep]

        def rows() -> Iterator[pd.DataFrame]:
            for number, shard in enumerate(shards):
                fetch(catalog.store, shard, Path(scratch, "shard"))
                yield from frames(Path(scratch, "shard"), shard, schema, config.batch_rows)
                if on_part:
                    on_part(number, len(shards))

        items = Items.collect(rows(), target.column, columns).frame
        each = (items.iloc[at : at + config.batch_rows] for at in range(0, len(items), config.batch_rows))
        path, told = Path(scratch, "answers.parquet"), {"modelyard.form": opened.form}
        num_rows = _write((_with_vectors(opened, some, config.keep) for some in each), path, told)
        uri = f"{folder}/part-000000.parquet"
        catalog.store.upload(path, uri)
        source = digest_of([[shard.uri, shard.state] for shard in shards])
        part = Part(source=shards[0].uri, source_sha256=source, uri=uri, sha256=file_sha256(path), num_rows=num_rows)
        _put_json(catalog, f"{folder}/done/000000.json", part.model_dump())
    if on_part:
        on_part(len(shards), len(shards))
    return [part], 0


def _with_vectors(package: ModelPackage, frame: pd.DataFrame, keep: Sequence[str]) -> pd.DataFrame:
    """Items by name, the columns kept, and their vectors."""
    column = package.spec.target.column
    kept = frame[list(dict.fromkeys([column, *keep]))]
    return kept.assign(embedding=list(package.item_vectors(frame)))


def _found(catalog: Catalog, folder: str, number: int) -> Part | None:
    try:
        return Part.model_validate_json(catalog.store.get(f"{folder}/done/{number:06d}.json"))
    except NotFound:
        return None
    except ValidationError as invalid:
        log.warning("%s/done/%06d.json: made again: %s", folder, number, invalid)
        return None


def _make(
    catalog: Catalog,
    package: ModelPackage,
    shard: Shard,
    config: PredictConfig,
    folder: str,
    number: int,
    scratch: Path,
) -> Part:
    path, answers = scratch / "shard", scratch / "answers.parquet"
    sha256 = fetch(catalog.store, shard, path)
    transform = package.spec.target.items if config.items else package.transform
    assert transform, "a package without items was refused"
    width = len(transform.columns)
    rows = min(config.batch_rows, max(1, BATCH_BYTES // (8 * width)))
    told = {"modelyard.source": shard.uri, "modelyard.source_sha256": sha256, "modelyard.form": package.form}
    batches = frames(path, shard, transform, rows)
    answer = partial(_with_vectors, package, keep=config.keep) if config.items else package.predict
    kept = [] if config.items else config.keep
    num_rows = _write(_answered(answer, batches, shard, kept), answers, told)
    uri = f"{folder}/part-{number:06d}.parquet"
    catalog.store.upload(answers, uri)
    part = Part(source=shard.uri, source_sha256=sha256, uri=uri, sha256=file_sha256(answers), num_rows=num_rows)
    _put_json(catalog, f"{folder}/done/{number:06d}.json", part.model_dump())
    return part


def _answered(
    answer: Callable[[pd.DataFrame], pd.DataFrame], batches: Iterator[pd.DataFrame], shard: Shard, keep: Sequence[str]
) -> Iterator[pd.DataFrame]:
    """Batches of answers: the number of the row in its shard, the columns kept, and what the model says."""
    first = 0
    for frame in batches:
        absent = [name for name in keep if name not in frame]
        if absent:
            raise DataError(f"{shard.uri}: has no column {', '.join(absent)} to keep")
        try:
            answers = answer(frame)
        except ModelyardError as failure:
            raise DataError(f"{shard.uri}, from row {first} on: {failure}") from failure
        rows = pd.DataFrame({"row": range(first, first + len(frame))}, index=frame.index)
        first += len(frame)
        yield pd.concat([rows, frame[list(keep)], answers], axis=1)


def _write(batches: Iterator[pd.DataFrame], path: Path, told: Mapping[str, str]) -> int:
    """One Parquet file of all batches; returns the number of rows. A shard without rows becomes a file without columns."""
    num_rows = 0
    writer: parquet.ParquetWriter | None = None
    try:
        for frame in batches:
            table = _table(frame, writer.schema if writer else None)
            if writer is None:
                schema = table.schema.with_metadata(dict(told))
                writer = parquet.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(table.cast(writer.schema))
            num_rows += len(frame)
        if writer is None:
            parquet.write_table(pa.table({}).replace_schema_metadata(dict(told)), path)
    finally:
        if writer:
            writer.close()
    return num_rows


def _table(frame: pd.DataFrame, schema: pa.Schema | None) -> pa.Table:
    if ENTITIES not in frame:
        return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    # Of texts without any, nobody could tell of what kind they would be.
    entities = pa.array(frame[ENTITIES].tolist(), ENTITY_TYPE)
    others = pa.Table.from_pandas(frame.drop(columns=ENTITIES), preserve_index=False)
    return others.append_column(ENTITIES, entities)


def _put_json(catalog: Catalog, uri: str, value: Any) -> None:
    import json

    catalog.store.put(uri, json.dumps(value, indent=1, sort_keys=True).encode())
