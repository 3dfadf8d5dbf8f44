"""A fresh endpoint per test, over the session's real store."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from modelyard.revisions import ServedVersion
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import Endpoint

LOG_LINES = 60  # of an endpoint, shown with a test that failed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows what its endpoints said: they are processes of their own."""
    report = yield
    if report.failed:
        endpoints = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Endpoint)]
        for endpoint in endpoints:
            if endpoint.log.exists():
                lines = endpoint.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                report.sections.append((f"log of {endpoint.name}", "\n".join(lines)))
    return report


@pytest.fixture(scope="module")
def new_endpoint(
    settings: Settings, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Endpoint]]:
    """Makes endpoints of their own name, home and port over the started ``store``; none outlives the
    module."""
    assert store.root
    made: list[Endpoint] = []

    def make(**more: str) -> Endpoint:
        home: Path = tmp_path_factory.mktemp("endpoint")
        made.append(Endpoint(settings, f"test-{uuid4().hex[:8]}", home, **more))
        return made[-1]

    yield make
    for endpoint in made:
        endpoint.close()


@pytest.fixture(scope="module")
def stable(store: Store) -> ServedVersion:
    """Version 1, from which a module's rollouts begin."""
    return publish_version(store, "1")


@pytest.fixture(scope="module")
def endpoint(new_endpoint: Callable[[], Endpoint]) -> Endpoint:
    """The one endpoint of a module, not started."""
    return new_endpoint()


@pytest.fixture
def serving(store: Store, endpoint: Endpoint, stable: ServedVersion) -> Endpoint:
    """It serves version 1, alone, whatever the test before did."""
    number = roll_out(store, endpoint.name, stable).number
    if not endpoint.runs:
        endpoint.start()
    endpoint.reach(number)
    return endpoint


@pytest.fixture(scope="session")
def digits_endpoint(settings: Settings, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One endpoint that serves version 7 of `digits` and nothing else, for tests that only ask it."""
    endpoint = Endpoint(settings, f"test-{uuid4().hex[:8]}", tmp_path_factory.mktemp("endpoint"))
    roll_out(store, endpoint.name, publish_version(store, "7"))
    endpoint.start().reach(1)
    yield endpoint
    endpoint.close()
