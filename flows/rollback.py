"""Back to an earlier version."""

from __future__ import annotations

from typing import Annotated

from prefect import flow

import tasks.rollout as tasks
from flows.parameters import Overrides, Preset, explained, load_config, trail_of
from tasks.results import RolloutResult


@flow(name="rollback")
def rollback(
    preset: Preset = "digits",
    version: Annotated[
        str,
        explained("Version", "Any version that served before; empty: the one before the present, or before a rollout"),
    ] = "",
    overrides: Overrides = [],
) -> RolloutResult:
    """Have the endpoint serve an earlier version, and end a rollout that is under way; then the endpoints of all regions."""
    config = load_config(preset, "", overrides)
    trail = trail_of(config, "")
    home = tasks.rollback(config.rollout, trail, version).result()
    for region in config.rollout.regions:
        tasks.rollback_in(region, config.rollout, trail, version)
    return home
