"""From a verdict to a served version."""

from __future__ import annotations

from typing import Annotated

from prefect import State, flow
from prefect.states import Failed

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
) -> RolloutResult | State[RolloutResult]:
    """Register a judged model and have the endpoint roll it out, by the policy of the preset."""
    config = load_config(preset, "", overrides)
    served = tasks.rollout(resolve(candidate), resolve(verdict), config.rollout, trail_of(config, parent_run))
    if served.name == "RolledBack":
        # A state of our own: the task's would count as "some task failed" and lose its name.
        refusal = served.result(raise_on_failure=False)
        return Failed(name="RolledBack", message=str(refusal), data=refusal)
    return served.result()
