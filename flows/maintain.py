"""Housekeeping: what nothing reaches any more is removed."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

import tasks.maintain as tasks


@flow(name="maintain")
def maintain(
    dry_run: Annotated[bool, Field(description="Only list what would be removed")] = True,
) -> int:
    """List, and unless this is a dry run remove, what no registry version, endpoint revision or run reaches."""
    return tasks.sweep(dry_run)
