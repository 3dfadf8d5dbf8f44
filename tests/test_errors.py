"""The exception tree: every failure is worth another try, or it is not."""

import inspect

import pytest

from modelyard import errors
from modelyard.errors import (
    ConfigError,
    DigestMismatch,
    ModelyardError,
    PermanentError,
    PortTaken,
    Refused,
    TransientError,
)

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, ModelyardError)]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not ModelyardError])
def test_every_error_is_transient_or_permanent(kind: type[ModelyardError]):
    """A retry policy finds one answer for each class, never two."""
    assert issubclass(kind, TransientError) != issubclass(kind, PermanentError)


@pytest.mark.parametrize("kind", ALL)
def test_the_drawn_tree_is_whole(kind: type[ModelyardError]):
    """The tree at the top of the file names every class."""
    assert kind.__name__ in (errors.__doc__ or "")


def test_sentences_name_what_to_look_at():
    """The offending field, port, file and reason are in the sentence and on the exception."""
    assert str(ConfigError("train.epochs", "too small")) == "train.epochs: too small"
    assert "MODELYARD_X=<port>" in str(PortTaken(80, "MODELYARD_X", "nginx (pid 1)"))
    assert "another process" in str(PortTaken(80, "MODELYARD_X", None))
    assert "s3://b/f" in str(DigestMismatch("s3://b/f", "aa", "bb"))


def test_a_refusal_carries_its_table():
    """What a person sees of a refused gate is its reasons and every check."""
    refused = Refused("x", ["too low", "too slow"], [{"check": "a"}])
    assert str(refused) == "x was refused: too low; too slow"
    assert refused.table == [{"check": "a"}]
