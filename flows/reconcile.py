"""What a crashed run left open is closed: its child runs, its task runs with their slots, its MLflow runs.

An automation triggers this for every crashed run of a deployment. A process that was killed reports nothing itself, so
its children would stay Running for ever, and a task's concurrency slot with them.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from prefect import flow

import tasks.reconcile as tasks
from flows.parameters import explained


@flow(name="reconcile")
def reconcile(flow_run_id: Annotated[UUID, explained("Flow run", "Id of the flow run that crashed")]) -> int:
    """End everything below a crashed flow run; returns how many runs that were."""
    ended = tasks.end_children(flow_run_id)
    tasks.end_tracking(flow_run_id)
    return ended
