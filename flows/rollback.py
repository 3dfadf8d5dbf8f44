"""Back to an earlier version."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from prefect import State, flow
from prefect.states import Failed

import tasks.rollout as tasks
from flows.parameters import Overrides, Preset, explained, load_config, trail_of
from modelyard.errors import EndpointUnavailable, ModelyardError
from tasks.results import RolloutResult


@flow(name="rollback")
def rollback(
    preset: Preset = "digits",
    version: Annotated[
        str,
        explained("Version", "Any version that served before; empty: the one before the present, or before a rollout"),
    ] = "",
    overrides: Overrides = [],
) -> RolloutResult | State[RolloutResult]:
    """Have the endpoint serve an earlier version, and end a rollout that is under way; then the endpoints of all regions.

    One that cannot go back keeps no other from it; the run fails then, and says who went where.
    """
    config = load_config(preset, "", overrides)
    trail = trail_of(config, "")
    ways: dict[str, Callable[[], RolloutResult]] = {
        "the home installation": lambda: tasks.rollback(config.rollout, trail, version).result()
    }
    for region in config.rollout.regions:
        ways[f"region {region}"] = partial(tasks.rollback_in, region, config.rollout, trail, version)
    results: list[RolloutResult] = []
    failures: list[ModelyardError] = []
    said: list[str] = []
    for where, go_back in ways.items():
        try:
            results.append(result := go_back())
        except EndpointUnavailable as away:
            failures.append(away)
            said.append(f"{where} goes back when its endpoint answers, the revision is written: {away}")
        except ModelyardError as failure:
            failures.append(failure)
            said.append(f"{where} could not go back: {failure}")
        else:
            said.append(f"{where} went back to version {result.release.version}")
    if failures:
        return Failed(message="; ".join(said), data=failures[0])
    return results[0]
