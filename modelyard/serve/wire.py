"""Frames between the router and a worker: a fixed header, then named tensors or one JSON text.

    length  of everything behind this field   u32
    number  pairs an answer with its request  u64
    kind    what the frame says               u8

A tensor travels as raw little-endian bytes behind (name, dtype, rows, columns, depth); a list of texts as JSON.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum

import numpy as np
import orjson

HEADER = struct.Struct("<IQB")
_LENGTH = struct.Struct("<I")
# Bytes of the name, dtype, rows, columns (0: a vector), depth (0: none), bytes of the data.
_TENSOR = struct.Struct("<BBIIII")
_DTYPES = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i8")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_TEXTS = 0

# The network's own outputs, among a worker's answers.
RAW_OUTPUTS = "outputs"
# What one tensor is on either side: numbers as an array, texts as a list.
Tensor = np.ndarray | list[str]
Tensors = Mapping[str, Tensor]


class Kind(IntEnum):
    READY = 1  # worker -> router, once: JSON of `WorkerInfo`
    INFER = 2  # router -> worker: the tensor `features`
    ANSWER = 3  # worker -> router: one tensor per output
    READ = 8  # router -> worker: requests as they came (`unread`)
    TOLD = 9  # worker -> router: what each of them is told
    FAILED = 4  # worker -> router: JSON {"error": ..., "transient": ...}; number 0 means that loading failed
    SCHEMA = 6  # router -> recorder: JSON of `recording.Schema`, which later records refer to by its number
    RECORD = 7  # router -> recorder: one answered request, as tensors
    LOAD = 5  # router -> worker, once, before all else: JSON {"folder": ..., "form": ...}


def frame(number: int, kind: Kind, payload: bytes) -> bytes:
    return HEADER.pack(HEADER.size - _LENGTH.size + len(payload), number, kind) + payload


def pack_tensors(tensors: Tensors) -> bytes:
    parts: list[bytes] = []
    for name, tensor in tensors.items():
        if isinstance(tensor, list):
            code, shape, data = _TEXTS, (len(tensor), 0, 0), orjson.dumps(tensor)
        else:
            code, shape, data = _CODES[tensor.dtype], (*tensor.shape, 0, 0)[:3], tensor.tobytes()
        encoded = name.encode()
        parts += [_TENSOR.pack(len(encoded), code, *shape, len(data)), encoded, data]
    return b"".join(parts)


def unpack_tensors(payload: bytes) -> dict[str, Tensor]:
    """The tensors of a payload; arrays share its memory and are read-only."""
    tensors: dict[str, Tensor] = {}
    at = 0
    while at < len(payload):
        name_length, code, *shape, length = _TENSOR.unpack_from(payload, at)
        begin = at + _TENSOR.size + name_length
        name = payload[begin - name_length : begin].decode()
        at = begin + length
        if code == _TEXTS:
            tensors[name] = orjson.loads(payload[begin:at])
        else:
            whole = [size for place, size in enumerate(shape) if size or not place]  # there may be no rows
            tensors[name] = np.frombuffer(payload, _DTYPES[code], math.prod(whole), begin).reshape(whole)
    return tensors


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, Kind, bytes]]:
        """Add bytes; yields (number, kind, payload) of every frame that is now whole."""
        buffer = self._buffer
        buffer += data
        begin = 0
        while len(buffer) - begin >= HEADER.size:
            length, number, kind = HEADER.unpack_from(buffer, begin)
            end = begin + _LENGTH.size + length
            if len(buffer) < end:
                break
            payload = bytes(memoryview(buffer)[begin + HEADER.size : end])
            begin = end
            yield number, Kind(kind), payload
        if begin:
            del buffer[:begin]
