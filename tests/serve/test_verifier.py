"""Who checks signatures, when the endpoint ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.errors import EndpointUnavailable
from modelyard.serve.verifier import Verifier


def test_a_closed_verifier_starts_no_process(tmp_path: Path):
    """A thread that still loads something asks in vain, and leaves nothing behind."""
    verifier = Verifier(tmp_path)
    verifier.close()
    with pytest.raises(EndpointUnavailable, match="cannot be checked"):
        verifier.check(tmp_path)
    assert verifier._process is None
