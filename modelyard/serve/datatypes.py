"""Datatypes of the Open Inference Protocol: what JSON numbers and raw bytes of each become, and back."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson

from modelyard.errors import DataError
from modelyard.serve.wire import Tensor

_LENGTH = struct.Struct("<I")


class BadRequestError(DataError):
    """The request does not say what the protocol wants; the sentence goes to the client."""


INFERENCE = "a JSON object with 'inputs'"  # what a request for inference must be


def parse_object(body: bytes, wanted: str = "a JSON object") -> dict[str, Any]:
    """A body as a JSON object.

    Args:
        wanted: what it must be, for the sentence.

    Raises:
        BadRequestError: it is none.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as failure:
        raise BadRequestError(f"the body is not JSON: {failure}") from None
    if not isinstance(document, dict):
        raise BadRequestError(f"the body must be {wanted}")
    return document


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of numbers.

    Attributes:
        name: as the protocol spells it.
        raw: one element of binary data, little-endian.
        kinds: kinds of JSON number it admits: integers never take fractions.
        buffer: what simdjson copies such a list as: doubles, signed or unsigned integers; None: it does not.
    """

    name: str
    raw: np.dtype
    kinds: str
    buffer: Literal["d", "i", "u"] | None


def _floats(bits: int) -> Datatype:
    return Datatype(f"FP{bits}", np.dtype(f"<f{bits // 8}"), "iuf", "d")


def _integers(bits: int, sign: Literal["i", "u"]) -> Datatype:
    name = f"{'U' if sign == 'u' else ''}INT{bits}"
    return Datatype(name, np.dtype(f"<{sign}{bits // 8}"), "iu", sign)


_KNOWN = [*map(_floats, (16, 32, 64)), *(_integers(bits, sign) for sign in ("i", "u") for bits in (8, 16, 32, 64))]
_KNOWN.append(Datatype("BOOL", np.dtype("?"), "b", None))
DATATYPES = {datatype.name: datatype for datatype in _KNOWN}
BUFFER_DTYPES = {"d": np.dtype("f8"), "i": np.dtype("i8"), "u": np.dtype("u8")}


def as_rows(values: np.ndarray, datatype: Datatype) -> np.ndarray:
    """Numbers (n, width) as a model takes them: float32 where the client says FP32, else float64.

    Raises:
        BadRequestError: beyond the datatype, or not finite.
    """
    if datatype.raw.kind in "iu":
        _refuse_beyond(values, datatype)
    if values.dtype != datatype.raw and datatype.name in ("FP16", "FP32"):
        with np.errstate(over="ignore"):  # a value beyond the type becomes infinite, and is refused as such
            values = values.astype(datatype.raw)
    rows = values if values.dtype == np.float32 else values.astype(np.float64, copy=False)
    # The sum of squares is finite only if all values are, but for an overflow that the second look settles.
    if not math.isfinite(np.vdot(rows, rows)) and not np.isfinite(rows).all():
        raise BadRequestError("the data holds values that are not finite")
    return rows


def from_binary(raw: bytes | memoryview, datatype: Datatype, num_rows: int, width: int) -> np.ndarray:
    """Raw bytes in row-major order as numbers (n, width); they share its memory.

    Raises:
        BadRequestError: another number of bytes.
    """
    expected = num_rows * width * datatype.raw.itemsize
    if len(raw) != expected:
        sentence = f"shape [{num_rows}, {width}] of {datatype.name} is {expected} bytes, the binary data has {len(raw)}"
        raise BadRequestError(sentence)
    if datatype.raw.kind == "b" and np.frombuffer(raw, np.uint8).max() > 1:
        raise BadRequestError("binary data of BOOL holds bytes other than 0 and 1")
    return np.frombuffer(raw, datatype.raw).reshape(num_rows, width)


def to_binary(tensor: Tensor) -> bytes:
    """Numbers as raw little-endian bytes; each text as its length (u32) and its UTF-8 bytes."""
    if isinstance(tensor, list):
        encoded = [text.encode() for text in tensor]
        return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))
    if sys.byteorder == "big":
        tensor = tensor.astype(tensor.dtype.newbyteorder("<"))
    return tensor.tobytes()


def texts_from_binary(raw: bytes | memoryview) -> list[str]:
    """Texts as `to_binary` writes them.

    Raises:
        BadRequestError: bytes are missing, or are not UTF-8.
    """
    texts: list[str] = []
    at = 0
    while at < len(raw):
        begin = at + _LENGTH.size
        end = begin + (_LENGTH.unpack_from(raw, at)[0] if begin <= len(raw) else 0)
        if begin > len(raw) or end > len(raw):
            raise BadRequestError("the binary data ends within a text")
        try:
            texts.append(bytes(raw[begin:end]).decode())
        except UnicodeDecodeError as failure:
            raise BadRequestError(f"text {len(texts)} is not UTF-8: {failure}") from None
        at = end
    return texts


def _refuse_beyond(values: np.ndarray, datatype: Datatype) -> None:
    bounds = np.iinfo(datatype.raw)
    if values.dtype != datatype.raw and (int(values.min()) < bounds.min or int(values.max()) > bounds.max):
        raise BadRequestError(f"the data holds values beyond {datatype.name}")
