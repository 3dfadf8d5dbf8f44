"""From a verdict to a served version."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from prefect import State, flow
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.states import Failed
from pydantic import Field

import tasks.rollout as tasks
from flows.parameters import Overrides, ParentRun, Preset, explained, load_config, trail_of
from modelyard.artifacts import ArtifactRef
from modelyard.errors import ApprovalNeeded, EndpointUnavailable, ModelyardError, RolledBack
from modelyard.presets import LifecycleConfig
from tasks.recording import Trail, resolve
from tasks.results import RolloutResult


class Approval(RunInput):
    """What a person says about a canary that may be promoted."""

    approve: bool = False
    by: str = Field(min_length=1, description="Who says so; the ledger keeps it")
    reason: str = ""


@flow(name="rollout")
def rollout(
    candidate: Annotated[str, explained("Candidate", "Digest or URI of a compressed model", min_length=8)],
    verdict: Annotated[str, explained("Verdict", "Digest or URI of the verdict on it", min_length=8)],
    preset: Preset = "digits",
    overrides: Overrides = [],
    parent_run: ParentRun = "",
) -> RolloutResult | State[RolloutResult]:
    """Register a judged model and have the endpoint roll it out, by the policy of the preset; then each of its regions."""
    config = load_config(preset, "", overrides)
    trail = trail_of(config, parent_run)
    given = resolve(candidate), resolve(verdict)
    served = tasks.rollout(*given, config.rollout, trail)
    if served.name == "AwaitsApproval":
        _ask_a_person(config, trail, served)
        served = tasks.rollout(*given, config.rollout, trail)
    if served.name == "RolledBack":
        # A state of our own: the task's would count as "some task failed" and lose its name.
        refusal = served.result(raise_on_failure=False)
        return Failed(name="RolledBack", message=str(refusal), data=refusal)
    result = served.result()
    if refusal := _to_regions(config, trail, *given, changed_home=result.release.changed):
        return Failed(name="RolledBack", message=str(refusal), data=refusal)
    return result


def _to_regions(
    config: LifecycleConfig, trail: Trail, candidate: ArtifactRef, verdict: ArtifactRef, *, changed_home: bool
) -> RolledBack | None:
    """One region after another, until one refuses; then those that this run changed go back, the last one first."""
    changed: list[str] = []
    for region in config.rollout.regions:
        try:
            there = tasks.rollout_in(region, candidate, verdict, config.rollout, trail)
        except ModelyardError as refusal:
            said = [str(refusal)]
            try:
                if tasks.is_begun_in(region, candidate, trail):
                    changed.append(region)  # it would go on with it later, whoever did not answer now
            except ModelyardError as away:
                said.append(f"whether region {region} goes on with it later cannot be told: {away}")
            if config.rollout.bring_back:
                said += _bring_back(config, trail, changed, changed_home=changed_home)
            return RolledBack(f"{trail.model_name} in region {region}", said)
        if there.release.changed:
            changed.append(region)
    return None


def _bring_back(config: LifecycleConfig, trail: Trail, regions: list[str], *, changed_home: bool) -> list[str]:
    """What became of each, as a sentence."""
    ways: dict[str, Callable[[], RolloutResult]] = {
        f"region {region}": partial(tasks.rollback_in, region, config.rollout, trail) for region in reversed(regions)
    }
    if changed_home:
        ways["the home installation"] = lambda: tasks.rollback(config.rollout, trail).result()
    return [_outcome(where, go_back) for where, go_back in ways.items()]


def _outcome(where: str, go_back: Callable[[], RolloutResult]) -> str:
    try:
        return f"{where} went back to version {go_back().release.version}"
    except EndpointUnavailable as away:
        return f"{where} goes back when its endpoint answers, the revision is written: {away}"
    except ModelyardError as failure:
        return f"{where} could not go back: {failure}"


def _ask_a_person(config: LifecycleConfig, trail: Trail, waiting: State[RolloutResult]) -> None:
    """Pause with a form that shows the evidence; no answer in time is a no."""
    wait = waiting.result(raise_on_failure=False)
    assert isinstance(wait, ApprovalNeeded)
    form = Approval.with_initial_data(description=_evidence(wait))
    seconds = int(config.rollout.approval_seconds)
    try:
        said = pause_flow_run(wait_for_input=form, timeout=seconds, poll_interval=2)
    except FlowPauseTimeout:
        tasks.approve(trail.model_name, False, "nobody", f"no answer within {seconds} s")
        return
    tasks.approve(trail.model_name, said.approve, said.by, said.reason)


def _evidence(wait: ApprovalNeeded) -> str:
    """Every gate with its evidence against its limit, as a Markdown table."""
    rows = [f"| {row['check']} | {row['value']} | {row['limit']} | {row['result']} |" for row in wait.table]
    return "\n".join(
        [
            f"**{wait.subject}** has what its policy asks for.",
            "",
            "| gate | evidence | limit | |",
            "|---|---|---|---|",
            *rows,
        ]
    )
