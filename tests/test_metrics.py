"""Streaming metrics against scikit-learn, and parts against the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    root_mean_squared_error,
)

from modelyard.metrics import ClassificationMetrics, RegressionMetrics, negative_log_likelihood, softmax
from tests.workbench import PROPERTY


def answers(seed: int, num_rows: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    outputs = rng.normal(scale=4, size=(num_rows, num_classes)).astype(np.float32)
    return outputs, rng.integers(0, num_classes, num_rows)


CASES = {"seed": st.integers(0, 2**32 - 1), "num_rows": st.integers(1, 60), "num_classes": st.integers(2, 6)}


@PROPERTY
@given(**CASES)
def test_scikit_learn_agrees(seed: int, num_rows: int, num_classes: int):
    """Accuracy, macro F1, per-class scores, confusion and loss are what scikit-learn computes."""
    outputs, targets = answers(seed, num_rows, num_classes)
    classes = list(range(num_classes))
    metric = ClassificationMetrics(num_classes)
    metric.update(outputs, targets)
    predicted = outputs.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predicted, labels=classes, zero_division=0
    )
    computed, per_class = metric.compute(), metric.per_class()
    assert computed["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert computed["macro_f1"] == pytest.approx(f1.mean())
    assert computed["loss"] == pytest.approx(
        log_loss(targets, softmax(outputs.astype(np.float64)), labels=classes), abs=1e-9
    )
    for name, expected in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        np.testing.assert_allclose(per_class[name], expected)
    np.testing.assert_array_equal(metric.confusion, confusion_matrix(targets, predicted, labels=classes))


@PROPERTY
@given(**CASES, cut=st.integers(0, 60))
def test_states_of_parts_add_up(seed: int, num_rows: int, num_classes: int, cut: int):
    """Ranks count parts; the sum of their states is the state of the whole."""
    outputs, targets = answers(seed, num_rows, num_classes)
    whole, one, other = (ClassificationMetrics(num_classes) for _ in range(3))
    whole.update(outputs, targets)
    one.update(outputs[:cut], targets[:cut])
    other.update(outputs[cut:], targets[cut:])
    np.testing.assert_allclose(one.state + other.state, whole.state)


def test_nothing_counted_is_no_division_by_zero():
    """A metric may be read before the first batch."""
    assert ClassificationMetrics(3).compute() == {"accuracy": 0.0, "macro_f1": 0.0, "loss": 0.0}


def test_large_outputs_do_not_overflow():
    """Logits of a thousand are large, not infinite."""
    outputs = np.array([[1000.0, 0.0], [0.0, -1000.0]], dtype=np.float32)
    np.testing.assert_allclose(negative_log_likelihood(outputs, np.array([1, 0])), [1000.0, 0.0])
    np.testing.assert_allclose(softmax(outputs), [[1, 0], [1, 0]])


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(2, 60), cut=st.integers(0, 60))
def test_regression_is_scikit_learns_in_the_targets_units(seed: int, num_rows: int, cut: int):
    """R2, mean absolute error and root mean squared error, fed in parts, merged, and brought back to their units."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(50, 7, num_rows)
    predicted = truth + rng.normal(0, 3, num_rows)
    encoded, outputs = ((values - 50) / 7 for values in (truth, predicted))
    one, other = RegressionMetrics(7.0), RegressionMetrics(7.0)
    one.update(outputs[:cut, None], encoded[:cut])
    other.update(outputs[cut:, None], encoded[cut:])
    one.state += other.state
    found = one.compute()
    assert found["r2"] == pytest.approx(r2_score(truth, predicted), abs=1e-6)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, predicted))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(truth, predicted))


def test_regression_without_variation_is_finite():
    """No rows, or rows that are all alike, divide nothing by zero."""
    assert RegressionMetrics().compute()["r2"] == 0.0
    alike = RegressionMetrics()
    alike.update(np.array([[2.0], [2.0]]), np.array([2.0, 2.0]))
    assert alike.compute() == {"r2": 1.0, "mae": 0.0, "rmse": 0.0, "loss": 0.0}
