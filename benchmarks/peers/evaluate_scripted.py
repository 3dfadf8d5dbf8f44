"""The same numbers by scikit-learn and SciPy: ... evaluate_scripted DATASET CANDIDATE CHAMPION RESAMPLES (folders).

Prints the seconds that the bootstrap took and those of everything else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from modelyard.model_package import ModelPackage

ROWS_AT_A_TIME = 8192
RESAMPLES_AT_A_TIME = 10  # 80 MB of row numbers at a million rows


def main(dataset: Path, candidate: Path, champion: Path, resamples: int) -> None:
    began = time.perf_counter()
    frame = pd.concat([pd.read_parquet(shard) for shard in sorted((dataset / "test").glob("*.parquet"))])
    models = {"candidate": ModelPackage.open(candidate), "float": ModelPackage.open(candidate, "float"),
              "champion": ModelPackage.open(champion)}  # fmt: skip
    truth = frame["label"].to_numpy()
    right, bootstrap_seconds = {}, 0.0

    def bootstrapped(values: np.ndarray, statistic: Callable[..., np.ndarray] = np.mean) -> None:
        nonlocal bootstrap_seconds
        start = time.perf_counter()
        stats.bootstrap(
            (values,), statistic, n_resamples=resamples, batch=RESAMPLES_AT_A_TIME, method="percentile", rng=0
        )
        bootstrap_seconds += time.perf_counter() - start

    for role, model in models.items():
        outputs = np.concatenate([
            model.outputs(model.transform.rows(frame.iloc[start : start + ROWS_AT_A_TIME]))
            for start in range(0, len(frame), ROWS_AT_A_TIME)
        ])  # fmt: skip
        probabilities = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        answers = np.array(model.spec.target.classes)[outputs.argmax(axis=1)]
        right[role] = (answers == truth).astype(np.float64)
        print(role, accuracy_score(truth, answers), f1_score(truth, answers, average="macro"))
        print(confusion_matrix(truth, answers), precision_recall_fscore_support(truth, answers))
        print(log_loss(truth, probabilities), roc_auc_score(truth, probabilities, multi_class="ovr"))
        bootstrapped(right[role])
    regions = frame["region"].to_numpy()
    for region in np.unique(regions):
        bootstrapped(right["candidate"][regions == region])
    bootstrapped(right["candidate"] - right["champion"])
    alone = int((right["candidate"] > right["champion"]).sum())
    other = int((right["candidate"] < right["champion"]).sum())
    print(stats.binomtest(alone, max(alone + other, 1)).pvalue)
    print(bootstrap_seconds, time.perf_counter() - began - bootstrap_seconds)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
