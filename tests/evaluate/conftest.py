"""What several tests of scores look at."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def outputs() -> tuple[np.ndarray, np.ndarray]:
    """Raw outputs (n, 4) of an overconfident classifier of four classes, and the truth (n,)."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 3000)
    raw = rng.normal(size=(3000, 4)) * 2
    raw[np.arange(3000), truth] += 2
    return raw.astype(np.float32), truth
