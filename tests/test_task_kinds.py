"""Classification: from labels to class numbers and back."""

import numpy as np
import pandas as pd
import pytest

from modelyard.errors import ConfigError, DataError
from modelyard.task_kinds import Target, task_kind

KIND = task_kind("classification")


def test_classes_are_sorted_and_plain():
    """The order of classes follows from the labels alone; numpy's integers become Python's."""
    target = KIND.fit_target("label", {np.int64(3), np.int64(1), np.int64(2)})
    assert target.classes == [1, 2, 3]
    assert Target.model_validate_json(target.model_dump_json()) == target
    assert KIND.fit_target("label", {"b", 2, "a"}).classes == [2, "a", "b"]
    assert KIND.output_width(target) == 3


def test_labels_survive_encoding_and_decoding():
    """The class number that a label becomes decodes to that label."""
    target = Target(column="label", classes=["ant", "bee"])
    encoded = KIND.encode(target, pd.Series(["bee", "ant", "bee"]))
    assert encoded.tolist() == [1, 0, 1]
    answers = KIND.decode(target, np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]], dtype=np.float32))
    assert answers["label"].tolist() == ["bee", "ant", "bee"]
    assert ((answers["probability"] > 0.5) & (answers["probability"] <= 1)).all()


def test_mixed_labels_keep_their_types():
    """Numbers among texts stay numbers."""
    answers = KIND.decode(Target(column="x", classes=[1, "a"]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert answers["label"].tolist() == [1, "a"]


def test_unknown_labels_are_named():
    """A label that training never saw is an error with its name and column."""
    with pytest.raises(DataError, match=r"'label'.*cat"):
        KIND.encode(Target(column="label", classes=["ant", "bee"]), pd.Series(["ant", "cat"]))


def test_one_class_is_no_classification():
    """There is nothing to learn where every row has one label."""
    with pytest.raises(DataError, match="at least 2"):
        KIND.fit_target("label", {1})


def test_unknown_kinds_are_refused():
    """The error lists the kinds there are."""
    with pytest.raises(ConfigError, match="classification"):
        task_kind("astrology")


def test_regression_goes_to_the_networks_units_and_back():
    """Encoded targets have mean 0 and deviation 1; decoding an output gives the value in its own units."""
    kind, values = task_kind("regression"), pd.Series([10.0, 20.0, 30.0])
    target = kind.fit_target("y", set(), 20.0, 5.0)
    encoded = kind.encode(target, values)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [-2.0, 0.0, 2.0]
    assert kind.decode(target, encoded[:, None])["value"].tolist() == values.tolist()
    assert kind.output_width(target) == 1


def test_regression_of_a_constant_or_of_no_numbers_is_refused():
    """Both say which column it is."""
    kind = task_kind("regression")
    with pytest.raises(DataError, match="'y' has the same value in every training row"):
        kind.fit_target("y", set(), 3.0, 0.0)
    with pytest.raises(DataError, match="'y' has values that are no finite numbers"):
        kind.encode(kind.fit_target("y", set(), 0.0, 1.0), pd.Series([1.0, np.nan]))


def test_models_of_one_question_may_be_compared_though_their_units_moved():
    """New data refits mean and scale; what is asked stays the same. Another column is another question."""
    kind = task_kind("regression")
    one, two = kind.fit_target("y", set(), 1.0, 2.0), kind.fit_target("y", set(), 1.5, 2.5)
    assert one != two
    assert one.question == two.question != kind.fit_target("z", set(), 1.0, 2.0).question
