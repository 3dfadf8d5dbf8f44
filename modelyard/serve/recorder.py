"""Writes the prediction log: `python -m modelyard.serve.recorder --socket-fd 5`, started by the router.

    predictions/<endpoint>/<model>/date=2026-11-22/<time>-<version>-<token>.parquet

A row of a request is a row here: request id, moment, latency, version, inputs as the transform read them, outputs. While the
bucket is away it stops reading, and the router leaves out what finds no room. It ends when the router hangs up,
after what it has is written.
"""

from __future__ import annotations

import argparse
import logging
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from modelyard.errors import ModelyardError, TransientError
from modelyard.serve.recording import INPUTS, MOMENT, REQUEST_ID, Schema
from modelyard.serve.wire import FrameReader, Kind, Tensor, unpack_tensors
from modelyard.settings import load_settings
from modelyard.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("modelyard.serve.recorder")

FLUSH_SECONDS = 30.0
FLUSH_BYTES = 32 * 2**20
RETRY_SECONDS = 2.0
LAST_TRIES = 2  # after the router has gone


@dataclass
class Batch:
    """Records of one version that wait to become a file."""

    schema: Schema
    records: list[dict[str, Tensor]] = field(default_factory=list)


class Log:
    """What was received and is not written yet."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batches: dict[int, Batch] = {}
        self._num_bytes = 0
        self._oldest: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Until the oldest record must be written; None when there is none."""
        return None if self._oldest is None else max(0.0, self._oldest + FLUSH_SECONDS - time.monotonic())

    def take(self, number: int, kind: Kind, payload: bytes) -> None:
        if kind is Kind.SCHEMA:
            # Numbers are given again when versions have gone.
            if number in self._batches:
                self.flush()
            self._batches[number] = Batch(Schema.model_validate_json(payload))
            return
        self._batches[number].records.append(unpack_tensors(payload))
        self._num_bytes += len(payload)
        self._oldest = self._oldest or time.monotonic()
        if self._num_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self, max_tries: int | None = None) -> None:
        """Write every batch, trying as long as it takes unless a number is given."""
        for batch in self._batches.values():
            if batch.records:
                self._write(batch, max_tries)
                batch.records = []
        self._num_bytes, self._oldest = 0, None

    def _write(self, batch: Batch, max_tries: int | None) -> None:
        body, uri = parquet(batch), f"{self._store.root}/{key(batch.schema)}"
        tries = 0
        while True:
            tries += 1
            try:
                self._store.put(uri, body)
            except TransientError as failure:
                logger.warning("%s: %s", uri, failure)
                if tries == max_tries:
                    logger.error("%d predictions are lost", len(batch.records))  # noqa: TRY400 (the sentence says it)
                    return
                time.sleep(RETRY_SECONDS)
            except ModelyardError as failure:
                logger.error("%d predictions are lost: %s", len(batch.records), failure)  # noqa: TRY400 (the same)
                return
            else:
                return


def key(schema: Schema) -> str:
    """A new object's key."""
    now = datetime.now(UTC)
    folder = f"predictions/{schema.endpoint}/{schema.model}/date={now:%Y-%m-%d}"
    return f"{folder}/{now:%H%M%S}-{schema.version}-{uuid4().hex[:8]}.parquet"


def parquet(batch: Batch) -> bytes:
    """The records of one version as a Parquet file, with the schema as its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records, schema = batch.records, batch.schema
    lengths = [len(record[INPUTS]) for record in records]
    moments = np.array([record[MOMENT] for record in records])
    columns: dict[str, Any] = {
        "request_id": pa.array(np.repeat([record[REQUEST_ID][0] for record in records], lengths)),
        "row": pa.array(np.concatenate([np.arange(length) for length in lengths])),
        "time": pa.array(np.repeat((moments[:, 0] * 1e6).astype("int64"), lengths), pa.timestamp("us", "UTC")),
        "milliseconds": pa.array(np.repeat(moments[:, 1] * 1e3, lengths)),
        "model": pa.array([schema.model] * sum(lengths)),
        "version": pa.array([schema.version] * sum(lengths)),
    }
    columns |= _inputs([np.asarray(record[INPUTS]) for record in records], schema.columns)
    outputs = [name for name in records[0] if not name.startswith("@")]
    tell = _by_token if schema.by_token else _column
    columns |= {f"out.{name}": tell([record[name] for record in records]) for name in outputs}
    told = {f"modelyard.{name}": str(value) for name, value in schema.model_dump().items() if name != "columns"}
    table = pa.table(columns).replace_schema_metadata(told)
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _inputs(rows: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, pa.Array]:
    """One column for each raw one; of a text its tokens."""
    import pyarrow as pa

    if all(some.dtype.kind == "i" for some in rows):
        return {f"in.{name}": pa.array([row[row >= 0] for some in rows for row in some]) for name in names}
    whole = np.concatenate([some.astype(np.float64, copy=False) for some in rows])
    return {f"in.{name}": pa.array(whole[:, place]) for place, name in enumerate(names)}


def _column(tensors: Sequence[Tensor]) -> pa.Array:
    """One output of all records: texts, numbers, or a list of numbers a row."""
    import pyarrow as pa

    if isinstance(tensors[0], list):
        return pa.array([text for tensor in tensors for text in tensor])
    joined = np.concatenate([np.asarray(tensor) for tensor in tensors])
    if joined.ndim == 1:
        return pa.array(joined)
    return pa.FixedSizeListArray.from_arrays(pa.array(joined.ravel()), joined.shape[1])


def _by_token(tensors: Sequence[Tensor]) -> pa.Array:
    """One output for each token of all records: a list a row, as long as its request was wide."""
    import pyarrow as pa

    return pa.array([row.tolist() for tensor in tensors for row in np.asarray(tensor)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m modelyard.serve.recorder", description=__doc__)
    parser.add_argument("--socket-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it leaves after the router, with what that one said last
    import pyarrow.parquet  # noqa: F401 (now, while nobody waits)

    settings = load_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with socket.socket(fileno=options.socket_fd) as connection:
        receive(connection, Log(Store(settings)))


def receive(connection: socket.socket, log: Log) -> None:
    """Read until the router hangs up, writing as it becomes due."""
    reader = FrameReader()
    while True:
        ready, _, _ = select.select([connection], [], [], log.seconds_left)
        data = connection.recv(2**18) if ready else None
        if data == b"":
            break
        for received in reader.feed(data or b""):
            log.take(*received)
        if log.seconds_left == 0:
            log.flush()
    log.flush(LAST_TRIES)


if __name__ == "__main__":
    main()
