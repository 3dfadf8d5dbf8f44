"""Fixtures of the end-to-end tests. Prefect is imported inside them: pytest loads this file before the environment of
the test installation is set, and Prefect reads its settings at import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from modelyard.sample_data import digits_parquet
from modelyard.storage import Store
from tests.conftest import Installation

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@pytest.fixture(scope="session")
def digits(stack: Installation) -> str:
    """The digits in the bucket, as a user would have them."""
    store = Store(stack.settings)
    for name, body in digits_parquet():
        store.put(f"{store.root}/raw/digits/{name}", body)
    return f"{store.root}/raw/digits/*.parquet"


@pytest.fixture(scope="session")
def last_run(stack: Installation, digits: str) -> dict:
    """What `modelyard run` left, of a network of its own: a first run whatever ran before on the same stack."""
    from tests.e2e.driving import OWN, modelyard

    ran = modelyard("run", "digits", *(word for override in OWN for word in ("--set", override)))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "prediction" in ran.stdout
    return json.loads((stack.home / "last-run.json").read_text())


@pytest.fixture(scope="session", autouse=True)
def scheduled_at(stack: Installation) -> Iterator[datetime]:
    """A schedule for one run soon, made before everything else, so that the test that looks for it need not wait."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.schedules import IntervalSchedule

    now = datetime.now(UTC)
    # The server looks for new schedules every minute or so, and makes no run for a moment that has passed.
    soon = IntervalSchedule(interval=timedelta(hours=5), anchor_date=now + timedelta(seconds=75))
    body = [{"schedule": soon.model_dump(mode="json"), "active": True, "parameters": {"dry_run": True}}]
    with get_client(sync_client=True) as client:
        # The synchronous client has no methods for schedules.
        schedules = f"/deployments/{client.read_deployment_by_name('maintain/nightly').id}/schedules"
        created = client._client.post(schedules, json=body).raise_for_status().json()
    yield now
    with get_client(sync_client=True) as client:
        client._client.delete(f"{schedules}/{created[0]['id']}")


@pytest.fixture
def prefect_client(stack: Installation) -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client
