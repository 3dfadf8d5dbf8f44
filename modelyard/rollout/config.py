"""How a judged model is rolled out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from modelyard.artifacts import Frozen
from modelyard.gates import RolloutPolicy


class RolloutConfig(Frozen):
    """Config of the rollout stage.

    Attributes:
        form: which form of the package answers requests; empty: the package's default form.
        takeover_seconds: bound on the endpoint's taking over (fetch, load, warm, probe, switch) where nothing is judged:
            the first version of a model, ``all_at_once``, and going back.
        away_seconds: bound on an endpoint that cannot be reached while its rollout is under way.
        approval_seconds: how long a flow run waits for a person, where the policy wants one.
        policy: steps, gates and waits of a rollout; the endpoint acts on it alone.
        regions: where it goes after the home installation, one after another; each has a file in the regions folder.
        bring_back: whether a region that refuses takes all before it back, the home installation too; else they keep the
            new version, and those after it the old one.
    """

    form: str = ""
    takeover_seconds: float = Field(60, gt=0)
    away_seconds: float = Field(60, gt=0)
    approval_seconds: float = Field(3600, gt=0)
    policy: RolloutPolicy = RolloutPolicy()
    regions: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]] = Field(default_factory=list)
    bring_back: bool = True

    @field_validator("regions")
    @classmethod
    def _are_different(cls, regions: list[str]) -> list[str]:
        if len(set(regions)) < len(regions):
            raise ValueError(f"a region comes once, not {regions}")
        return regions
