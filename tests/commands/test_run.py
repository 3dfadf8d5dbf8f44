"""What `modelyard run` says of the answers that it got in the end."""

from __future__ import annotations

from typing import Any

import pytest

from commands.prediction import Prediction
from commands.run import _told


@pytest.mark.parametrize(
    ("labels", "truths", "probabilities", "sentence"),
    [
        ([9, 3, 3], [5, 3, 3], [0.9, 0.8, 0.7], "2 of 3 held-out rows right; 5 taken for 9"),
        (["ham"], ["ham"], [0.9], "1 of 1 held-out rows right"),
        (["ham"], [], [0.9], "ham"),
        ([1.5, 2.5], [1.25, 2.0], [], "1.5, the truth is 1.25"),
        (["a vector"], [], [], "a vector"),
    ],
)
def test_what_is_said_of_the_answers(labels: list[Any], truths: list[Any], probabilities: list[float], sentence: str):
    """Of classes how many are right and which are not; of anything else the first answer, with the truth where it is known."""
    asked = Prediction(
        labels=labels, truths=truths, probabilities=probabilities, version="1", digest="", request_id="", milliseconds=1
    )
    assert _told(asked) == sentence
