"""Where figures of training go."""

from __future__ import annotations

import pytest

from modelyard.train.events import rank_figure
from tasks.train import _is_said, _metric


@pytest.mark.parametrize(
    ("name", "metric", "said"),
    [
        ("loss", "progress/loss", True),
        ("memory_bytes", "progress/memory_bytes", True),
        (rank_figure(3, "memory_bytes"), "system/rank_3/memory_bytes", False),
    ],
)
def test_figures_of_single_ranks_are_kept_and_not_said(name: str, metric: str, said: bool):
    """In MLflow they stand beside the machine's; a log line of hundreds of ranks would say nothing."""
    assert _metric(name) == metric
    assert _is_said(name) == said
