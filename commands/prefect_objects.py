"""Everything Prefect needs to know about us, applied so that applying it again changes nothing.

Work pool, result-storage block, the limit on devices, automations, and the deployments of `prefect.yaml`. Runs in a
process of its own (`python -m commands.prefect_objects`), so that a bound can be put on it and so that `modelyard up`
need not import Prefect when nothing changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from commands.environment import PROJECT, RESULTS_BLOCK, client_environment, supervisor_environment
from commands.readiness import REQUEST_SECONDS, prefect_headers, tail
from modelyard.errors import StackFailed
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store

if TYPE_CHECKING:
    from prefect import PrefectClient
    from prefect.events.schemas.automations import AutomationCore

# How many devices trainings share (`tasks/devices.py`).
DEVICES_LIMIT = "modelyard-devices"
RECONCILE_DEPLOYMENT = "reconcile/crashed"
HEARTBEAT_BOUND = timedelta(seconds=90)  # three heartbeats of 30 s, see the worker in supervisord.conf
APPLY_SECONDS = 180.0
DEPLOY_SECONDS = 150.0


def ensure(settings: Settings) -> bool:
    """Apply everything unless it is applied already; True if it had to be.

    Raises:
        StackFailed: Prefect refused something; ends with what it said.
    """
    stamp = settings.home / "prefect" / "applied.json"
    fingerprint = _fingerprint(settings)
    if _is_applied(settings, stamp, fingerprint):
        return False
    stamp.unlink(missing_ok=True)
    log = settings.home / "logs" / "prefect-objects.log"
    environment = {**supervisor_environment(settings), **client_environment(settings)}
    with log.open("w") as output:
        command = [sys.executable, "-m", "commands.prefect_objects"]
        try:
            applied = subprocess.run(
                command, cwd=PROJECT, env=environment, stdout=output, stderr=output, timeout=APPLY_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise StackFailed(f"Prefect took none of our objects within {APPLY_SECONDS:.0f} s; see {log}") from None
    if applied.returncode:
        raise StackFailed(f"Prefect refused our objects. The end of {log}:\n{tail(log, 25)}")
    with _api(settings) as api:
        deployments = [known["id"] for known in api.post("/deployments/filter", json={}).raise_for_status().json()]
    stamp.write_text(json.dumps({"fingerprint": fingerprint, "deployments": deployments}))
    return True


async def apply(settings: Settings) -> None:
    """Create or update every object, in the order in which they need each other."""
    from prefect.client.orchestration import get_client  # seconds to import: only where it is used

    async with get_client() as client:
        await _work_pool(client, settings)
        await _results_block(settings)
        await client.upsert_global_concurrency_limit_by_name(DEVICES_LIMIT, num_devices(settings))
        await _automation(client, crash_silent_runs())
    deploy(settings)
    async with get_client() as client:
        deployment_id = await _deployment_id(client, RECONCILE_DEPLOYMENT)
        if deployment_id:
            await _automation(client, reconcile_crashed_runs(deployment_id))


def deploy(settings: Settings) -> None:
    """`prefect deploy --all`, as a person would type it.

    Raises:
        StackFailed: it failed; its own words are in this process's output.
    """
    if not (PROJECT / "prefect.yaml").is_file():
        print("no prefect.yaml: nothing to deploy")
        return
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = {**os.environ, "MODELYARD_WORK_POOL": settings.work_pool}
    done = subprocess.run(command, cwd=PROJECT, env=environment, timeout=DEPLOY_SECONDS, check=False)
    if done.returncode:
        raise StackFailed(f"`prefect deploy --all` ended with exit status {done.returncode}")


def num_devices(settings: Settings) -> int:
    """As the settings say, or what this machine has: accelerators, or else processors."""
    if settings.devices:
        return settings.devices
    from modelyard.train.devices import Accelerators  # torch: two seconds

    return Accelerators.here().count or (os.cpu_count() or 1)


def crash_silent_runs() -> AutomationCore:
    """Crashed, for a run that fell silent: its process and its worker died together, so nobody else reports it."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    return AutomationCore(
        name="Crash silent flow runs",
        description=f"No heartbeat and no new state for {HEARTBEAT_BOUND.seconds} s: the process is gone.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            # Any sign of life counts. A list of states would miss those with a name of their own, such as Refused.
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=HEARTBEAT_BOUND,
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message="The run sent no heartbeat; its process is gone.")
        ],
    )


def reconcile_crashed_runs(deployment_id: Any) -> AutomationCore:
    """Run the reconciler for a crashed run of any deployment but the reconciler's own, which could go on for ever."""
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    # Spelled out: Prefect renders a bare "{{ ... }}" as JSON, which a UUID is not.
    flow_run_id = {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}
    return AutomationCore(
        name="Reconcile crashed flow runs",
        description="Ends what a crashed run left running: its child runs, their slots, its training processes.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {
                    "prefect.resource.role": ["deployment"],
                    "prefect.resource.id": [f"!prefect.deployment.{deployment_id}"],
                }
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(deployment_id=deployment_id, parameters={"flow_run_id": flow_run_id})],
    )


async def _work_pool(client: PrefectClient, settings: Settings) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with suppress(ObjectAlreadyExists):  # its owner may have tuned it: it stays as it is
        await client.create_work_pool(
            WorkPoolCreate(name=settings.work_pool, type="process", description="Flow runs of Modelyard")
        )


async def _results_block(settings: Settings) -> None:
    """Credentials are left out: every process finds its own, so the block can be read by anybody."""
    from prefect.filesystems import RemoteFileSystem

    block = RemoteFileSystem(
        basepath=f"s3://{settings.bucket}/prefect-results",
        settings=Store(settings).filesystem_options(with_credentials=False),
    )
    await block.asave(RESULTS_BLOCK, overwrite=True)


async def _automation(client: PrefectClient, wanted: AutomationCore) -> None:
    """One automation of this name, as wanted."""
    first, *surplus = await client.read_automations_by_name(wanted.name) or [None]
    for duplicate in surplus:
        if duplicate:
            await client.delete_automation(duplicate.id)
    if first is None:
        await client.create_automation(wanted)
    else:
        await client.update_automation(first.id, wanted)


async def _deployment_id(client: PrefectClient, name: str) -> Any:
    from prefect.exceptions import ObjectNotFound

    try:
        return (await client.read_deployment_by_name(name)).id
    except ObjectNotFound:
        return None


def _is_applied(settings: Settings, stamp: Path, fingerprint: str) -> bool:
    """The stamp fits, and the server still knows the deployments: its database may be another one by now."""
    try:
        applied = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return False
    if applied["fingerprint"] != fingerprint:
        return False
    wanted: Sequence[str] = applied["deployments"]
    with _api(settings) as api:
        pool = api.get(f"/work_pools/{settings.work_pool}")
        known = api.post("/deployments/count", json={"deployments": {"id": {"any_": list(wanted)}}})
    return pool.is_success and known.is_success and known.json() == len(wanted)


def _api(settings: Settings) -> httpx.Client:
    return httpx.Client(
        base_url=settings.api_url,
        headers=prefect_headers(),
        timeout=REQUEST_SECONDS,
        trust_env=bool(settings.prefect_api_url),  # a proxy must not be asked for our own machine
    )


def _fingerprint(settings: Settings) -> str:
    """Of everything that decides what is applied. A flow's parameters become its form, so flows belong to it."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.read_bytes())
    options = Store(settings).filesystem_options(with_credentials=False)
    digest.update(
        json.dumps(
            [settings.api_url, settings.work_pool, settings.bucket, str(PROJECT), options, settings.devices]
        ).encode()
    )
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    yield Path(__file__)
    if (PROJECT / "prefect.yaml").is_file():
        yield PROJECT / "prefect.yaml"
    yield from sorted((PROJECT / "flows").glob("**/*.py"))


def main() -> None:
    asyncio.run(apply(load_settings()))


if __name__ == "__main__":
    os.chdir(PROJECT)
    main()
