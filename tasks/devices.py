"""Slots of the devices that trainings share, as Prefect's own global concurrency limit counts them.

A training takes one slot for each device that its ranks compute on; on a CPU one for each rank, at most all. Its lease is
renewed while it runs; what was killed loses it after `LEASE_SECONDS`, and sooner where the crash is reconciled.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.context import ConcurrencyContext
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from modelyard.errors import ConfigError, MachineBusy

LIMIT = "modelyard-devices"
LEASE_LABEL = "modelyard.lease."
LEASE_SECONDS = 120.0
WAIT_SECONDS = 7 * 86_400.0


@contextmanager
def device_slots(kind: str, wanted: int) -> Generator[None]:
    """Hold slots for devices that are used together, as soon as they are free.

    Args:
        kind: ``cpu``, or an accelerator as torch names it.

    Raises:
        ConfigError: there are fewer altogether.
        MachineBusy: they were not free within a week.
    """
    limit = _limit()
    if limit is None:
        get_run_logger().warning("Prefect has no limit %s: nothing counts who uses the devices", LIMIT)
        yield
        return
    slots = min(wanted, limit.limit) if kind == "cpu" else wanted
    if slots > limit.limit:
        raise ConfigError(
            "train.ranks",
            f"{wanted} ranks need as many {kind} devices, and the limit {LIMIT} counts {limit.limit}: take fewer ranks, or set"
            " MODELYARD_DEVICES and run `modelyard up`",
        )
    if limit.active_slots + slots > limit.limit:
        text = "waits for %d of %d devices (limit %s), of which other trainings hold %d"
        get_run_logger().info(text, slots, limit.limit, LIMIT, limit.active_slots)
    with ConcurrencyContext() as context, ExitStack() as stack:
        # A server that is away for a while ends no training: the machine's own locks still hold its accelerators.
        lease = concurrency(
            LIMIT, slots, WAIT_SECONDS, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False
        )
        try:
            stack.enter_context(lease)
        except TimeoutError as late:
            raise MachineBusy(f"{slots} of {limit.limit} devices were not free within {WAIT_SECONDS:g} s") from late
        except ConcurrencySlotAcquisitionError as failure:
            raise MachineBusy(f"Prefect gave no slots of the limit {LIMIT}: {failure}") from failure
        _write_down(context.cleanup_lease_ids)
        yield


def _limit() -> GlobalConcurrencyLimitResponse | None:
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            return None


def _write_down(leases: Sequence[UUID]) -> None:
    """On the flow run, where the reconciler of a crashed one finds them."""
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(UUID(flow_run.id), {f"{LEASE_LABEL}{lease}": str(lease) for lease in leases})
    except httpx.HTTPError as failure:
        get_run_logger().warning(
            "the slots are not written down: after a crash they are free by themselves: %s", failure
        )


def free_leases(labels: Mapping[str, object]) -> int:
    """Give back the slots that are written on a flow run which is over; returns how many leases that were."""
    leases = [UUID(str(value)) for name, value in labels.items() if name.startswith(LEASE_LABEL)]
    with get_client(sync_client=True) as client:
        for lease in leases:
            client.release_concurrency_slots_with_lease(lease)  # one that is not held any more is no error
    return len(leases)
