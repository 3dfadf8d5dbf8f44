"""Verdict rules: pure arithmetic over numbers somebody measured. Rollout's policy and the endpoint share this file."""

from __future__ import annotations

from collections.abc import Sequence

from modelyard.artifacts import Frozen


class Check(Frozen):
    """One rule applied to one number.

    Attributes:
        name: what was checked.
        value: what was measured.
        limit: what it was held against.
        passed: whether it kept within the limit.
        sentence: the same for a person.
    """

    name: str
    value: float
    limit: float
    passed: bool
    sentence: str

    def row(self) -> dict[str, object]:
        """As a row of a table."""
        result = "passed" if self.passed else "REFUSED"
        return {"check": self.name, "value": round(self.value, 6), "limit": round(self.limit, 6), "result": result}


class Verdict(Frozen):
    """All checks of one candidate. It passes when every check does."""

    subject: str
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """One sentence for each check that failed."""
        return [check.sentence for check in self.checks if not check.passed]

    def table(self) -> Sequence[dict[str, object]]:
        return [check.row() for check in self.checks]


def floor(name: str, value: float, limit: float) -> Check:
    """The value must reach the limit. NaN never does."""
    passed = value >= limit
    relation = "reaches" if passed else "is below"
    return Check(
        name=name,
        value=value,
        limit=limit,
        passed=passed,
        sentence=f"{name} {value:.4f} {relation} the floor {limit:.4f}",
    )


def allowed_drop(name: str, value: float, reference: float, drop: float, *, against: str) -> Check:
    """The value may lie at most ``drop`` below the reference. NaN never passes."""
    limit = reference - drop
    # Sums of exact fractions such as 0.95 - 0.01 must not refuse a candidate that sits on the limit.
    passed = value >= limit - 1e-12
    relation = "keeps within" if passed else "exceeds"
    return Check(
        name=f"{name} against {against}",
        value=value,
        limit=limit,
        passed=passed,
        sentence=f"{name} {value:.4f} against {against}'s {reference:.4f} {relation} the allowed drop of {drop:.4f}",
    )
