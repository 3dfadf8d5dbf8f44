"""MLflow's scoring protocol: rows by column name, as JSON in its four shapes or as CSV, to records of answers. Pure.

An answer holds what `mlflow.pyfunc.load_model(...).predict` gives for the same rows: the task's answers without the raw
outputs of the network. `params` are accepted and, as there, not used.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from modelyard.entities import ENTITIES, entities_of
from modelyard.errors import DataError
from modelyard.serve.answers import JSON, Headers
from modelyard.serve.bodies import Head, refuse_kind
from modelyard.serve.datatypes import DATATYPES, BadRequestError, as_rows
from modelyard.serve.inference import Dialect
from modelyard.serve.texts import tokens_of
from modelyard.serve.wire import RAW_OUTPUTS, Tensor
from modelyard.serve.worker_info import WorkerInfo
from modelyard.transform import RowTransform, TextTransform
from modelyard.transform.features import plain_text

CSV_KIND = b"text/csv"
SHAPES = ("dataframe_split", "dataframe_records", "instances", "inputs")
_LISTED = 5  # missing columns that a sentence names


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """Raw rows (n, width), float64, in the model's order of columns; or tokens of texts (n, t), int64, with the texts."""

    rows: np.ndarray
    texts: Sequence[str] = ()


class Scoring(Dialect):
    """The dialect of `/invocations`."""

    def read(self, body: bytes, head: Head, model: str, info: WorkerInfo) -> ScoringRequest:  # noqa: ARG002 (the columns say it)
        """A request body as rows.

        Raises:
            HttpError: 415.
            BadRequestError: says what is wrong with it.
        """
        refuse_kind(head, b"application/json", CSV_KIND)
        if info.transform:
            table = _csv_columns(body) if head.kind == CSV_KIND else _json_columns(body, info.columns)
            rows = _coded(table, info.transform)
            if info.tags is not None:  # characters are counted in the texts
                return ScoringRequest(rows, [plain_text(text) for text in table[info.transform.columns[0]]])
            return ScoringRequest(rows if info.reads_text else as_rows(rows, DATATYPES["FP64"]))
        values = _from_csv(body, info.columns) if head.kind == CSV_KIND else _from_json(body, info.columns)
        if not values.size:
            raise BadRequestError("there are no rows")
        return ScoringRequest(as_rows(values, DATATYPES["FP64"]))

    def write(
        self,
        answers: Mapping[str, Tensor],
        info: WorkerInfo,
        request: ScoringRequest,
        *,
        model: str,  # noqa: ARG002 (the protocol has no place for it; the headers do)
        version: str,  # noqa: ARG002 (the same)
        request_id: str,  # noqa: ARG002 (the same)
    ) -> tuple[bytes, Headers]:
        """`{"predictions": [{"label": ..., "probability": ...}, ...]}`, one record a row; of token classification
        `{"entities": [{"start": ..., "end": ..., "label": ..., "score": ..., "text": ...}, ...]}`."""
        if info.tags is not None:
            return orjson.dumps({"predictions": _entities(answers, info, request)}), [JSON]
        names = [name for name, _, _ in info.outputs if name != RAW_OUTPUTS]
        columns = [_plain(answers[name]) for name in names]
        records = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        assert len(records) == len(request.rows)
        return orjson.dumps({"predictions": records}, option=orjson.OPT_SERIALIZE_NUMPY), [JSON]


def _entities(answers: Mapping[str, Tensor], info: WorkerInfo, request: ScoringRequest) -> list[dict[str, Any]]:
    transform, tags, said, sure = info.transform, info.tags, answers["tag"], answers["probability"]
    assert isinstance(transform, TextTransform)
    assert isinstance(said, np.ndarray)
    assert isinstance(sure, np.ndarray)
    found = entities_of(transform, tags or [], request.texts, said, sure)
    return [{ENTITIES: entities} for entities in found]


def _plain(tensor: Tensor) -> Sequence[Any]:
    """Scalars that JSON writes as short as they are: float32 stays float32."""
    return list(tensor)


def _coded(table: Mapping[str, list[Any]], transform: RowTransform) -> np.ndarray:
    """Raw columns by name as the rows that the worker's transform takes: texts as tokens, categories and dates as codes, gaps filled in."""
    for name in transform.columns:
        if any(isinstance(value, list | dict) for value in table.get(name, ())):
            raise BadRequestError(f"column {name!r} holds a list or an object where a single value belongs")
    try:
        rows = _rows(table, transform)
    except DataError as failure:
        raise BadRequestError(str(failure)) from None
    if not rows.size:
        raise BadRequestError("there are no rows")
    return rows


def _rows(table: Mapping[str, list[Any]], transform: RowTransform) -> np.ndarray:
    if isinstance(transform, TextTransform) and transform.column in table:
        return tokens_of(transform, table[transform.column])
    return transform.rows(table)


def _csv_columns(body: bytes) -> dict[str, list[Any]]:
    names, *rows = _csv_lines(body)
    if len(set(names)) < len(names):
        raise BadRequestError("the names of the columns must differ")
    return {name: [row[number] for row in rows] for number, name in enumerate(names)}


def _json_columns(body: bytes, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns by name from any of the four shapes; lists of values without names are in the model's order."""
    shape, content = _json_content(body)
    if shape == "inputs" and isinstance(content, dict):
        if not all(isinstance(values, list) for values in content.values()):
            raise BadRequestError("the columns of 'inputs' must be lists of the same length")
        return content
    names, rows = columns, content
    if shape == "dataframe_split":
        names, rows = _split_parts(content)
    if not isinstance(rows, list):
        raise BadRequestError(f"{shape!r} must be a list of rows")
    if rows and all(isinstance(row, dict) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {name: [row.get(name) for row in rows] for name in names}
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        raise BadRequestError(f"every row must be a list of {len(names)} values, or every row an object")
    return {name: [row[number] for row in rows] for number, name in enumerate(names)}


def _from_csv(body: bytes, columns: Sequence[str]) -> np.ndarray:
    names, *rows = _csv_lines(body)
    places = _places(names, columns)
    try:
        return np.array([[float(row[place]) for place in places] for row in rows], dtype=np.float64)
    except ValueError:
        raise BadRequestError(_first_word(rows, places, columns)) from None


def _first_word(rows: Sequence[Sequence[str]], places: Sequence[int], columns: Sequence[str]) -> str:
    """Which value of a CSV is no number."""
    for number, row in enumerate(rows, start=1):
        for place, column in zip(places, columns, strict=True):
            try:
                float(row[place])
            except ValueError:
                return f"row {number} of the CSV has {row[place][:40]!r} as {column!r}, which is not a number"
    raise AssertionError("every value is a number")


def _csv_lines(body: bytes) -> list[list[str]]:
    """The header, then rows as long as it."""
    try:
        # Spreadsheets begin with a byte order mark, and only CSV's own reader knows which line ends are within quotes.
        text = io.StringIO(body.decode("utf-8-sig"), newline="")
        lines = [line for line in csv.reader(text, strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as failure:
        raise BadRequestError(f"the body is not CSV: {failure}") from None
    if not lines:
        raise BadRequestError("the first line of the CSV must name its columns")
    names, *rows = lines
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise BadRequestError(f"row {number} of the CSV has {len(row)} values, its header {len(names)}")
    return lines


def _json_content(body: bytes) -> tuple[str, Any]:
    """Which of the shapes it is, and what it holds."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as failure:
        raise BadRequestError(f"the body is not JSON: {failure}") from None
    given = [shape for shape in SHAPES if isinstance(document, dict) and shape in document]
    if len(given) != 1:
        raise BadRequestError(f"the body must be a JSON object with exactly one of {', '.join(SHAPES)}")
    return given[0], document[given[0]]


def _from_json(body: bytes, columns: Sequence[str]) -> np.ndarray:
    shape, content = _json_content(body)
    if shape == "dataframe_split":
        return _from_split(content, columns)
    if shape == "inputs" and isinstance(content, dict):
        return _from_columns(content, columns)
    if not isinstance(content, list):
        raise BadRequestError(f"{shape!r} must be a list of rows")
    if shape == "dataframe_records" or (content and isinstance(content[0], dict)):
        return _from_records(content, columns)
    return _matrix(content, len(columns))


def _split_parts(content: Any) -> tuple[list[str], list[Any]]:
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise BadRequestError("'dataframe_split' must be an object with 'columns' and 'data'")
    names = content.get("columns")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRequestError("'columns' must be a list of names")
    return names, content["data"]


def _from_split(content: Any, columns: Sequence[str]) -> np.ndarray:
    names, rows = _split_parts(content)
    places = _places(names, columns)
    return _matrix(rows, len(names))[:, places]


def _from_records(content: list[Any], columns: Sequence[str]) -> np.ndarray:
    for number, record in enumerate(content):
        if not isinstance(record, dict):
            raise BadRequestError(f"row {number} is not an object of column names and values")
        if len(record) < len(columns) or not all(name in record for name in columns):
            _refuse_missing([name for name in columns if name not in record], f"row {number}: ")
    return _matrix([[record[name] for name in columns] for record in content], len(columns))


def _from_columns(content: dict[str, Any], columns: Sequence[str]) -> np.ndarray:
    _refuse_missing([name for name in columns if name not in content])
    wanted = [content[name] for name in columns]
    if not all(isinstance(values, list) and len(values) == len(wanted[0]) for values in wanted):
        raise BadRequestError("the columns of 'inputs' must be lists of the same length")
    return _matrix(wanted, len(wanted[0])).T


def _matrix(rows: list[Any], width: int) -> np.ndarray:
    """Nested lists as numbers (n, width)."""
    if not rows:
        return np.empty((0, width))
    try:
        values = np.asarray(rows)
    except (ValueError, OverflowError):
        raise BadRequestError("the rows must be lists of the same length") from None
    if values.ndim != 2 or values.shape[1] != width:
        raise BadRequestError(f"expected rows of {width} values, got data of shape {list(values.shape)}")
    if values.dtype.kind not in DATATYPES["FP64"].kinds:
        raise BadRequestError("the rows hold something else than numbers")
    return values


def _places(names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where each of the model's columns is among these names; further ones are left out."""
    place = {name: number for number, name in enumerate(names)}
    if len(place) < len(names):
        raise BadRequestError("the names of the columns must differ")
    _refuse_missing([name for name in columns if name not in place])
    return [place[name] for name in columns]


def _refuse_missing(missing: Sequence[str], where: str = "") -> None:
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise BadRequestError(f"{where}columns are missing: {', '.join(missing[:_LISTED])}{more}")
