"""From a verdict to a served version."""

from __future__ import annotations

from typing import Annotated

from prefect import flow

import tasks.rollout as tasks
from flows.parameters import Overrides, ParentRun, Preset, explained, load_config, trail_of
from tasks.recording import resolve
from tasks.results import RolloutResult


@flow(name="rollout")
def rollout(
    candidate: Annotated[str, explained("Candidate", "Digest or URI of a compressed model", min_length=8)],
    verdict: Annotated[str, explained("Verdict", "Digest or URI of the verdict on it", min_length=8)],
    preset: Preset = "digits",
    overrides: Overrides = [],
    parent_run: ParentRun = "",
) -> RolloutResult:
    """Register a judged model and have the endpoint take it over."""
    config = load_config(preset, "", overrides)
    served = tasks.rollout(resolve(candidate), resolve(verdict), config.rollout, trail_of(config, parent_run))
    return served.result()
