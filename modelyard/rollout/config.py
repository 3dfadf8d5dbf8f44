"""How a judged model is rolled out."""

from __future__ import annotations

from pydantic import Field

from modelyard.artifacts import Frozen


class RolloutConfig(Frozen):
    """Config of the rollout stage.

    Attributes:
        form: which form of the package answers requests; empty: the package's default form.
        takeover_seconds: bound on the endpoint's taking over (fetch, load, warm, probe, switch).
    """

    form: str = ""
    takeover_seconds: float = Field(60, gt=0)
