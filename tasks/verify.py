"""Do aliases, revisions, endpoints and manifests agree? As a task, with a table of what does not."""

from __future__ import annotations

import time

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State

from modelyard.rollout.agreement import disagreements
from modelyard.rollout.aliases import follow
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.session import session

SECOND_LOOK_SECONDS = 5.0


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def verify() -> State[list[str]]:
    """Name every disagreement; one is enough for the state `Disagreement`. An alias that fell behind is moved, and named."""
    now = session()
    found = disagreements(now.catalog, now.tracker, now.settings)
    if found:  # a version that is being loaded, a decision that is being written: what passes by itself is none
        time.sleep(SECOND_LOOK_SECONDS)
        found = disagreements(now.catalog, now.tracker, now.settings)
        found += follow(now.catalog, now.tracker, now.settings)
    name = now.settings.endpoint_name
    create_table_artifact(
        key="verify",
        table=[{"disagreement": sentence} for sentence in found],
        description=f"What is said of endpoint {name} and does not agree: {len(found) or 'nothing'}",
    )
    if found:
        return Failed(name="Disagreement", message="; ".join(found), data=found)
    return Completed(data=found, message=f"all who speak of endpoint {name} say the same")
