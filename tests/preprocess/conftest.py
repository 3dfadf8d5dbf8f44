from __future__ import annotations

import pytest

from modelyard.catalog import Catalog
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.workbench import own_catalog


@pytest.fixture
def catalog(store: Store, settings: Settings) -> Catalog:
    """An empty catalog in the real store."""
    del store  # it runs
    return own_catalog(settings)
