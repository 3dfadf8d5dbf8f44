"""Raw columns to values of one type, and which values are none. Whole columns at a time; nothing raises on bad values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

# A float column writes its whole numbers as 3.0: that is the label 3.
INTEGER = r"^[+-]?\d{1,18}(\.0*)?$"
NOT_A_NUMBER_WORDS = ("nan", "+nan", "-nan")
DATE_FORMS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y")
Parsed = tuple[pl.Series, np.ndarray]
_Reader = Callable[[pl.Series], pl.Series]


def numbers(values: pl.Series) -> Parsed:
    """A column as float64, nulls and NaN as null, and a mask (n,) of what is there but is not a number.

    Infinities stay: whether they may is the caller's question.
    """
    if values.dtype == pl.String:
        parsed, unreadable = _with_second_look(values, _as_float, lambda texts: _as_float(texts.str.strip_chars()))
    else:
        parsed = values.cast(pl.Float64, strict=False)
        unreadable = (parsed.is_null() & values.is_not_null()).to_numpy()
    # -0.0 equals 0.0 and must not hash apart from it.
    return pl.Series(values.name, parsed.to_numpy() + 0.0, nan_to_null=True), unreadable


def booleans(values: pl.Series) -> Parsed:
    """A column as 0.0 and 1.0: from booleans, from 0 and 1, or from the words true, false, yes, no."""
    if values.dtype != pl.String:
        parsed, unreadable = numbers(values)
    else:
        words = values.str.strip_chars().str.to_lowercase()
        known = {"true": "1", "t": "1", "yes": "1", "y": "1", "false": "0", "f": "0", "no": "0", "n": "0"}
        parsed, unreadable = numbers(words.replace(known))
    strange = (parsed.is_not_null() & ~parsed.is_in([0.0, 1.0])).to_numpy()
    return parsed, unreadable | strange


def integers(values: pl.Series) -> Parsed:
    """A column as int64, and a mask of what is there but is no whole number."""
    if values.dtype.is_integer():
        parsed = values.cast(pl.Int64, strict=False)
    elif values.dtype == pl.String:
        return _with_second_look(values, _as_integer, _as_whole)
    else:
        return _with_second_look(texts(values), _as_integer, _as_whole)
    return parsed, (parsed.is_null() & values.is_not_null()).to_numpy()


def texts(values: pl.Series) -> pl.Series:
    """A column as text, null where it is null, NaN or empty."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
    if values.dtype != pl.String:
        values = values.cast(pl.String, strict=False)
    return values.set(values == "", None) if (values == "").any() else values


def dates(values: pl.Series) -> Parsed:
    """A column as time stamps in microseconds, and a mask of what is there but is no date.

    Text is read as ISO 8601 or one of a few unambiguous forms; time zones are converted to UTC.
    """
    if values.dtype != pl.String:
        parsed = _naive(values)
        return parsed, (parsed.is_null() & values.is_not_null()).to_numpy()
    parsed = pl.Series(values.name, [None] * len(values), dtype=pl.Datetime("us"))
    stripped = values.str.strip_chars().set(values == "", None)
    for form in DATE_FORMS:
        missing = parsed.is_null() & stripped.is_not_null()
        if not missing.any():
            break
        read = stripped.set(~missing, None).str.to_datetime(form, strict=False, time_unit="us")
        parsed = parsed.zip_with(~missing, read)
    return parsed, (parsed.is_null() & stripped.is_not_null()).to_numpy()


def _naive(values: pl.Series) -> pl.Series:
    if isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone:
        values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        return values.cast(pl.Datetime("us"), strict=False)
    return pl.Series(values.name, [None] * len(values), dtype=pl.Datetime("us"))


def _with_second_look(values: pl.Series, quick: _Reader, thorough: _Reader) -> Parsed:
    """Read all values the quick way, and only those it could not read the thorough way."""
    parsed = quick(values)
    lost = parsed.is_null() & values.is_not_null()
    if not lost.any():
        return parsed, np.zeros(len(values), dtype=bool)
    again = values.filter(lost)
    second = thorough(again)
    empty = (again.str.strip_chars() == "").to_numpy()
    positions = lost.arg_true()
    parsed = parsed.scatter(positions, second)
    unreadable = np.zeros(len(values), dtype=bool)
    unreadable[positions.to_numpy()] = second.is_null().to_numpy() & ~empty & ~_says_nan(again)
    return parsed, unreadable


def _says_nan(values: pl.Series) -> np.ndarray:
    return values.str.strip_chars().str.to_lowercase().is_in(NOT_A_NUMBER_WORDS).to_numpy()


def _as_float(values: pl.Series) -> pl.Series:
    return values.cast(pl.Float64, strict=False)


def _as_integer(values: pl.Series) -> pl.Series:
    return values.cast(pl.Int64, strict=False)


def _as_whole(values: pl.Series) -> pl.Series:
    """Whole numbers that are written as floats, or with spaces around them."""
    stripped = values.str.strip_chars()
    whole = stripped.set(~stripped.str.contains(INTEGER), None).str.extract(r"^([+-]?\d+)")
    return whole.cast(pl.Int64, strict=False)
