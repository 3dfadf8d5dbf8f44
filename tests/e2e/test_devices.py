"""Devices are counted by the stack's real Prefect server."""

from __future__ import annotations

import threading

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.runtime import flow_run

from commands.prefect_objects import DEVICES_LIMIT
from modelyard.errors import ConfigError
from tasks.devices import LIMIT, device_slots, free_leases
from tests.conftest import Installation
from tests.e2e.driving import eventually

WAITS_SECONDS = 15  # three times as long as the server has those who wait ask again


def test_trainings_take_as_many_slots_as_they_use_devices(stack: Installation, prefect_client: SyncPrefectClient):
    """On CPUs as many as ranks, and never more than there are; more accelerators than there are is said at once. Who does not
    find enough waits for the others' end; a lease that a crashed run has left is given back by what is written on it."""
    assert LIMIT == DEVICES_LIMIT
    limit = prefect_client.read_global_concurrency_limit_by_name(LIMIT).limit
    body = {"limit": 3}
    address = f"{stack.settings.api_url}/v2/concurrency_limits/{LIMIT}"
    httpx.patch(address, json=body, trust_env=False).raise_for_status()
    waiting, got, done = threading.Event(), threading.Event(), threading.Event()

    @flow(name="later")
    def later() -> None:
        waiting.set()
        with device_slots("cuda", 2):
            got.set()
            done.wait(WAITS_SECONDS)

    @flow(name="devices")
    def trainings() -> None:
        with pytest.raises(
            ConfigError, match=r"4 ranks need as many cuda devices, and the limit modelyard-devices counts 3"
        ):
            device_slots("cuda", 4).__enter__()
        with device_slots("cpu", 64):
            assert taken(prefect_client) == 3
        with device_slots("cuda", 2):
            assert taken(prefect_client) == 2
            other = threading.Thread(target=later, daemon=True)
            other.start()
            assert waiting.wait(WAITS_SECONDS)
            assert not got.wait(1.5)
        assert got.wait(WAITS_SECONDS)
        assert taken(prefect_client) == 2
        done.set()
        other.join(WAITS_SECONDS)
        assert taken(prefect_client) == 0
        with device_slots("cpu", 1):
            assert free_leases(prefect_client.read_flow_run(flow_run.id).labels) == 3
            assert taken(prefect_client) == 0

    try:
        trainings()
    finally:
        httpx.patch(address, json={"limit": limit}, trust_env=False).raise_for_status()
    eventually(lambda: taken(prefect_client) == 0 or None, 5, "slots stayed taken")


def taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(LIMIT).active_slots
