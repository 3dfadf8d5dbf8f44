"""Fitted transforms: from the columns a user has to the tensors a network takes.

Fitted once on the training split, kept as data (`transform.json`), applied on read by this one implementation in
training, evaluation and serving, so that they cannot differ. Torch is not imported here: the endpoint needs this.
"""

from modelyard.transform.fit import Moments, fit_scaling
from modelyard.transform.fitted import FeatureScale, FittedTransform, TransformConfig

__all__ = ["FeatureScale", "FittedTransform", "Moments", "TransformConfig", "fit_scaling"]
