"""Back to the version that served before."""

from __future__ import annotations

from prefect import flow

import tasks.rollout as tasks
from flows.parameters import Overrides, Preset, load_config, trail_of
from tasks.results import RolloutResult


@flow(name="rollback")
def rollback(preset: Preset = "digits", overrides: Overrides = []) -> RolloutResult:
    """Have the endpoint serve the version before the present one."""
    config = load_config(preset, "", overrides)
    return tasks.rollback(config.rollout, trail_of(config, "")).result()
