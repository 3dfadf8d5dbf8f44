"""What a reader must know of a split that does not hold everything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from modelyard.evaluate.evidence import Evidence, _absent_classes
from modelyard.task_kinds import Target

TARGET = Target(column="kind", classes=["ant", "bee", "cat"])


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        ([5, 5, 5], []),
        ([5, 0, 5], ["no row of the test split is of class bee: nothing is known about it"]),
        (
            [0, 5, 0],
            ["the test split holds a single class: it cannot tell a good model from one that always answers it"],
        ),
    ],
)
def test_classes_that_the_test_split_lacks_are_named(rows: list[int], notes: list[str]):
    """One is missing, or all but one: a sentence each; nothing where all are there."""
    judged = cast("Any", {"candidate": SimpleNamespace(confusion=np.diag(rows))})
    assert _absent_classes(Evidence(judged=judged, golden=np.empty(0)), TARGET) == notes
