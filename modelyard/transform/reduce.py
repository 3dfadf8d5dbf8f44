"""Fewer inputs: selection by variance and mutual information, and extraction by incremental PCA."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np

from modelyard.errors import DataError
from modelyard.transform.config import SelectConfig
from modelyard.transform.fit import Moments
from modelyard.transform.fitted import FittedTransform

SEED = 0  # mutual information adds noise to break ties; it has to be the same each time


def select(
    transform: FittedTransform, moments: Moments, sample: np.ndarray, labels: np.ndarray, config: SelectConfig
) -> FittedTransform:
    """The transform with the inputs that tell most.

    Args:
        transform: without any selection so far.
        moments: of its outputs over the training split.
        sample, labels: some of those outputs (n, width), and class numbers (n,).

    Raises:
        DataError: nothing is left.
    """
    chosen = np.arange(transform.width)
    if config.variance is not None:
        chosen = chosen[moments.deviation**2 > config.variance]
        if not len(chosen):
            raise DataError(f"no input has a variance above transform.select.variance = {config.variance:g}; lower it")
    if config.mutual_information is not None and config.mutual_information < len(chosen):
        chosen = chosen[_most_informative(sample[:, chosen], labels, config.mutual_information)]
    return FittedTransform(features=transform.features, selected=[int(number) for number in chosen])


def extract(transform: FittedTransform, batches: Iterable[np.ndarray], components: int) -> FittedTransform:
    """The transform followed by a projection on its principal components (Ross, Lim, Lin & Yang, 2008).

    Args:
        transform: without any projection so far.
        batches: its outputs over the training split, (n, width) each; how they are cut shows in the last digits.

    Raises:
        DataError: more components than inputs, or than rows.
    """
    from safetensors.numpy import save
    from sklearn.decomposition import IncrementalPCA
    from threadpoolctl import threadpool_limits

    if components > transform.width:
        raise DataError(f"transform.components: {components} are more than the {transform.width} inputs there are")
    model = IncrementalPCA(n_components=components)
    fitted = False
    with threadpool_limits(1):  # sums in one order, whatever the machine
        for batch in batches:
            if len(batch) >= components:  # fewer rows than components cannot be taken in: the last batch may be so
                model.partial_fit(batch)
                fitted = True
    if not fitted:
        raise DataError(f"transform.components: the training split has fewer rows than {components}")
    tensors = {"mean": np.ascontiguousarray(model.mean_), "components": np.ascontiguousarray(model.components_)}
    projection = base64.b64encode(save(tensors)).decode()
    return FittedTransform(features=transform.features, selected=transform.selected, projection=projection)


def _most_informative(sample: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Positions, in order, of the ``count`` columns that say most about the label."""
    from sklearn.feature_selection import mutual_info_classif

    information = mutual_info_classif(sample, labels, random_state=SEED)
    return np.sort(np.argsort(-information, kind="stable")[:count])
