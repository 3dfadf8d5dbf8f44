"""Fixtures of the end-to-end tests. Prefect is imported inside them: pytest loads this file before the environment of
the test installation is set, and Prefect reads its settings at import."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture
def prefect_client(stack: Installation) -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client
