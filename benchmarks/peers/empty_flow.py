"""Five tasks that do nothing: what Prefect costs before anybody's work begins.

python -m benchmarks.peers.empty_flow
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment

NUM_STEPS = 5
DEPLOYMENT = "empty/bench"
TIMEOUT_SECONDS = 300.0
POLL_SECONDS = 0.1


@task(cache_policy=NO_CACHE)
def step(number: int) -> int:
    """Nothing."""
    return number + 1


@flow(name="empty")
def empty() -> int:
    """One task after another."""
    number = 0
    for _ in range(NUM_STEPS):
        number = step(number)
    return number


def deploy(work_pool: str) -> None:
    """A deployment that the stack's own worker runs."""
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(empty)
        client.create_deployment(
            flow_id,
            name="bench",
            work_pool_name=work_pool,
            entrypoint=f"{__name__}.empty",
            pull_steps=[],  # as ours: the worker imports the module, the project is on its path
        )


def by_worker() -> None:
    """From the trigger to the final state."""
    follow(DEPLOYMENT, {})


def follow(deployment: str, parameters: Mapping[str, Any]) -> None:
    """Trigger a deployment and wait for its end.

    Raises:
        RuntimeError: it did not complete.
    """
    ended: Any = run_deployment(
        deployment, parameters=dict(parameters), timeout=TIMEOUT_SECONDS, poll_interval=POLL_SECONDS, as_subflow=False
    )
    if not ended.state or not ended.state.is_completed():
        raise RuntimeError(f"{deployment} ended as {ended.state}")


if __name__ == "__main__":
    empty()
