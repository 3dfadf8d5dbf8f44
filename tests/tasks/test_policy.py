"""Which failures are tried again."""

from __future__ import annotations

import inspect

import pytest
from prefect import Task
from prefect.states import Failed

import tasks.compress
import tasks.evaluate
import tasks.maintain
import tasks.preprocess
import tasks.reconcile
import tasks.rollout
import tasks.train
import tasks.tune
from modelyard import errors
from tasks.policy import is_transient

MODULES = [
    tasks.preprocess,
    tasks.train,
    tasks.tune,
    tasks.compress,
    tasks.evaluate,
    tasks.rollout,
    tasks.maintain,
    tasks.reconcile,
]
TASKS = [value for module in MODULES for _, value in inspect.getmembers(module) if isinstance(value, Task)]
ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ModelyardError) and kind is not errors.ModelyardError
]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_either_transient_or_permanent(kind: type[errors.ModelyardError]):
    """The tree has two halves, and the retry policy reads which one an error is in."""
    assert issubclass(kind, errors.TransientError) != issubclass(kind, errors.PermanentError)
    failure = kind.__new__(kind)
    assert is_transient(None, None, Failed(data=failure)) == issubclass(kind, errors.TransientError)


def test_error_of_nobody_is_not_tried_again():
    """A bug gives the same answer every time."""
    assert not is_transient(None, None, Failed(data=KeyError("bug")))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_retries_by_the_policy_and_caches_nothing_itself(task: Task):
    """Retries are bounded and only for transient errors; the manifest in the bucket is the one cache."""
    assert task.retries == 3
    assert task.retry_condition_fn is is_transient
    assert task.retry_jitter_factor
    assert task.cache_policy is not None
    assert task.cache_policy.compute_key(None, {}, {}) is None
