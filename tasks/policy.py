"""Retry policies, read from the exception tree: transient errors are tried again, permanent ones are said at once."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from modelyard.errors import TransientError

RETRIES = 3
# 2, 4, 8 s, each up to half as long again, so that runs which failed together do not come back together.
BACKOFF = exponential_backoff(backoff_factor=2)
JITTER = 0.5


def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the failure of a task run may pass by itself."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, TransientError)
