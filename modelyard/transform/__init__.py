"""Fitted transforms: from the columns a user has to the tensors a network takes.

Fitted once on the training split, kept as data (`transform.json`), applied on read by this one implementation in
training, evaluation and serving, so that they cannot differ. Torch is not imported here, nor are pandas and
scikit-learn by what applies: the endpoint needs this.
"""

from modelyard.transform.config import SelectConfig, TokenConfig, TransformConfig
from modelyard.transform.features import Category, DateParts, FeatureScale, HashedCategory
from modelyard.transform.fit import Counts, Moments, Sample, fit_category, fit_scales, fit_scaling
from modelyard.transform.fitted import FittedTransform

__all__ = [
    "Category",
    "Counts",
    "DateParts",
    "FeatureScale",
    "FittedTransform",
    "HashedCategory",
    "Moments",
    "Sample",
    "SelectConfig",
    "TokenConfig",
    "TransformConfig",
    "fit_category",
    "fit_scales",
    "fit_scaling",
]
