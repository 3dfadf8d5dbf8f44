"""Fitted transforms: from the columns a user has to the tensors a network takes.

Fitted once on the training split, kept as data (`transform.json`), applied on read by this one implementation in
training, evaluation and serving, so that they cannot differ. Torch is not imported here, nor are pandas and
scikit-learn by what applies: the endpoint needs this.
"""

from __future__ import annotations

from pydantic import TypeAdapter

from modelyard.transform.config import SelectConfig, TextConfig, TokenConfig, TransformConfig
from modelyard.transform.features import Category, DateParts, FeatureScale, HashedCategory
from modelyard.transform.fit import Counts, Moments, Sample, fit_category, fit_scales, fit_scaling
from modelyard.transform.fitted import FittedTransform
from modelyard.transform.text import TextTransform, joined, portions

# What stands between a raw row and a network: from numbers, categories and dates, or from one text.
RowTransform = FittedTransform | TextTransform
_READER = TypeAdapter(RowTransform)


def read_row_transform(body: bytes | str) -> RowTransform:
    """A fitted transform of either sort, from its `transform.json`."""
    return _READER.validate_json(body)


__all__ = [
    "Category",
    "Counts",
    "DateParts",
    "FeatureScale",
    "FittedTransform",
    "HashedCategory",
    "Moments",
    "RowTransform",
    "Sample",
    "SelectConfig",
    "TextConfig",
    "TextTransform",
    "TokenConfig",
    "TransformConfig",
    "fit_category",
    "fit_scales",
    "fit_scaling",
    "joined",
    "portions",
    "read_row_transform",
]
