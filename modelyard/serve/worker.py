"""One model version in a process of its own.

    python -m modelyard.serve.worker --socket-fd 5 --router-pid 1234

Started or forked by the router, never by hand: it inherits one end of a socket pair, loads and warms the package that LOAD
names, says READY and answers frames one after the other. It ends when the router does: the socket closes, and the kernel
sends SIGKILL should it be busy then.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np
import orjson

from modelyard.errors import TransientError
from modelyard.model_package import ModelPackage
from modelyard.runtime import preload
from modelyard.serve.reader import read_and_answer
from modelyard.serve.starting import give_back_memory
from modelyard.serve.wire import HEADER, RAW_OUTPUTS, Kind, Tensor, frame, pack_tensors, unpack_tensors
from modelyard.serve.worker_info import WorkerInfo, worker_info
from modelyard.transform import TextTransform

WARM_BATCHES = (1, 32)
WARM_TOKENS = 32  # of a text
OOM_SCORE = Path("/proc/self/oom_score_adj")
NAME = b"modelyard-work"  # in `top` and /proc/<pid>/comm, which have room for 15 characters
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m modelyard.serve.worker", description=__doc__)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--router-pid", type=int, required=True)
    options = parser.parse_args(arguments)
    run(socket.socket(fileno=options.socket_fd), options.router_pid)


def run(connection: socket.socket, router_pid: int) -> None:
    """Be the worker of that router until it leaves."""
    _end_with(router_pid)
    _end_before_others()
    with connection:
        serve(connection)


def serve(connection: socket.socket) -> None:
    """Prepare, load, report, answer until the router hangs up."""
    preload()
    try:
        with connection.makefile("rb", buffering=2**18) as stream:
            assert isinstance(stream, BufferedReader)
            if model := _load(connection, stream):
                _answer_all(connection, stream, model)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the router is gone, and nobody is left to tell


def _load(connection: socket.socket, stream: BufferedReader) -> LoadedModel | None:
    """The model that the router names, once it does; None where it cannot be loaded, or the router left."""
    header = _exactly(stream, HEADER.size)
    if not header:
        return None
    wanted = orjson.loads(_exactly(stream, HEADER.unpack(header)[0] - (HEADER.size - 4)))
    model, kind, payload = loaded(Path(wanted["folder"]), wanted["form"])
    give_back_memory()
    connection.sendall(frame(0, kind, payload))
    return model


def loaded(folder: Path, form: str) -> tuple[LoadedModel | None, Kind, bytes]:
    """A package, warm, with what there is to say about it; or nothing, with what went wrong."""
    try:
        package = ModelPackage.open(folder, form)
        described = _warmed(package)
        payload = orjson.dumps(described)
        return LoadedModel(package, worker_info(described)), Kind.READY, payload
    except Exception as failure:  # noqa: BLE001 (the router decides what it means; only a sentence can cross)
        return None, Kind.FAILED, failed(failure)


class LoadedModel:
    """A package that is warm, and what goes in and out of it."""

    def __init__(self, package: ModelPackage, info: WorkerInfo) -> None:
        self._package = package
        self._info = info

    def answered(self, kind: Kind, payload: bytes) -> tuple[Kind, bytes]:
        """The answer to a call of the router, packed; or what went wrong."""
        try:
            if kind is Kind.READ:
                return Kind.TOLD, read_and_answer(payload, self._info, self._answers)
            rows = unpack_tensors(payload)["features"]
            assert isinstance(rows, np.ndarray)
            return Kind.ANSWER, pack_tensors(self._answers(rows))
        except Exception as failure:  # noqa: BLE001 (one bad request must not end its neighbours' process)
            return Kind.FAILED, failed(failure)

    def _answers(self, rows: np.ndarray) -> dict[str, Tensor]:
        return answers(self._package, rows)


def answers(package: ModelPackage, rows: np.ndarray) -> dict[str, Tensor]:
    """What a client may ask for: the decoded answers first, then the raw outputs."""
    outputs = np.ascontiguousarray(package.outputs(rows), dtype=np.float32)
    decoded = {name: _portable(values) for name, values in package.decode(outputs).items()}
    return {**decoded, RAW_OUTPUTS: outputs}


def _answer_all(connection: socket.socket, stream: BufferedReader, model: LoadedModel) -> None:
    while header := _exactly(stream, HEADER.size):
        length, number, kind = HEADER.unpack(header)
        payload = _exactly(stream, length - (HEADER.size - 4))
        connection.sendall(frame(number, *model.answered(Kind(kind), payload)))


def _warmed(package: ModelPackage) -> dict[str, object]:
    """Run the batch sizes that matter once, and describe what goes in and out (the fields of `WorkerInfo`)."""
    described: dict[str, Tensor] = {}
    transform = package.transform
    width = min(WARM_TOKENS, transform.width) if isinstance(transform, TextTransform) else len(transform.columns)
    for num_rows in WARM_BATCHES:
        described = answers(package, np.zeros((num_rows, width), dtype=np.float32))
    raw = described[RAW_OUTPUTS]
    by_token = isinstance(raw, np.ndarray) and raw.ndim == 3
    return {
        "columns": transform.columns,
        "transform": None if transform.takes_plain_numbers else transform.model_dump_json(),
        "outputs": [
            [name, _datatype(values), _num_columns(values, by_token=by_token)] for name, values in described.items()
        ],
        "tags": package.spec.target.classes if by_token else None,
    }


def _num_columns(values: Tensor, *, by_token: bool) -> int:
    """Numbers of a row's answer, or of each token's; 0 for a single one."""
    axes = 2 if by_token else 1
    return values.shape[axes] if isinstance(values, np.ndarray) and values.ndim > axes else 0


def _portable(values: np.ndarray) -> Tensor:
    """Numbers as float32 or int64, everything else as texts."""
    if values.dtype.kind == "f":
        return np.ascontiguousarray(values, dtype=np.float32)
    if values.dtype.kind in "iu":
        return np.ascontiguousarray(values, dtype=np.int64)
    return [str(value) for value in values]


def _datatype(values: Tensor) -> str:
    """The protocol's name of a type."""
    if isinstance(values, list):
        return "BYTES"
    return "FP32" if values.dtype.kind == "f" else "INT64"


def failed(failure: Exception) -> bytes:
    """The payload that says so."""
    said = {"error": str(failure) or type(failure).__name__, "transient": isinstance(failure, TransientError)}
    return orjson.dumps(said)


def _exactly(stream: BufferedReader, length: int) -> bytes:
    """That many bytes, or none where the stream ended."""
    data = stream.read(length)
    return data if len(data) == length else b""


def _end_with(router_pid: int) -> None:
    """Leave when the router does, and only then: it stops its workers after they have drained."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NAME, NAME)
    if os.getppid() != router_pid:
        raise SystemExit(0)  # it died before the kernel was told


def _end_before_others() -> None:
    """When the machine has no memory left the kernel shall end a worker, whose requests others answer, and not the router."""
    with contextlib.suppress(OSError):
        OOM_SCORE.write_text("1000")


if __name__ == "__main__":
    main()
