"""Housekeeping: what nothing reaches any more is removed."""

from __future__ import annotations

from typing import Annotated

from prefect import flow

import tasks.maintain as tasks
from flows.parameters import explained


@flow(name="maintain")
def maintain(
    dry_run: Annotated[bool, explained("Dry run", "Only list what would be removed")] = True,
) -> int:
    """List, and unless this is a dry run remove, what no registry version, endpoint revision or run reaches."""
    return tasks.sweep(dry_run)
