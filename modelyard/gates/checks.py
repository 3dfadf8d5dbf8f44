"""Verdict rules: one rule applied to one number, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from modelyard.artifacts import Frozen


class Check(Frozen):
    """One rule applied to one number.

    Attributes:
        name: what was checked.
        value: what was measured; None where it could not be computed, which never passes.
        limit: what it was held against; None in the same way.
        passed: whether it kept within the limit.
        sentence: the same for a person.
    """

    name: str
    value: float | None
    limit: float | None
    passed: bool
    sentence: str

    def row(self) -> dict[str, object]:
        """As a row of a table."""
        result = "passed" if self.passed else "REFUSED"
        return {"check": self.name, "value": _rounded(self.value), "limit": _rounded(self.limit), "result": result}


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
    return _check(name, value, limit, passed, f"{name} {_short(value)} {relation} the floor {_short(limit)}")


def ceiling(name: str, value: float, limit: float) -> Check:
    """The value may reach the limit, not pass it. NaN never keeps within."""
    passed = value <= limit
    relation = "keeps within" if passed else "is above"
    return _check(name, value, limit, passed, f"{name} {_short(value)} {relation} the limit {_short(limit)}")


def allowed_drop(name: str, value: float, reference: float, drop: float, *, against: str) -> Check:
    """The value may lie at most ``drop`` below the reference. NaN never passes."""
    limit = reference - drop
    # Sums of exact fractions such as 0.95 - 0.01 must not refuse a candidate that sits on the limit.
    passed = value >= limit - 1e-12
    relation = "keeps within" if passed else "exceeds"
    whose = f"{against}'" if against.endswith("s") else f"{against}'s"
    sentence = f"{name} {_short(value)} against {whose} {_short(reference)} {relation} the allowed drop of {drop:.4f}"
    return _check(f"{name} against {against}", value, limit, passed, sentence)


def _check(name: str, value: float, limit: float, passed: bool, sentence: str) -> Check:
    if math.isfinite(value) and math.isfinite(limit):
        return Check(name=name, value=value, limit=limit, passed=passed, sentence=sentence)
    return Check(
        name=name,
        value=value if math.isfinite(value) else None,
        limit=limit if math.isfinite(limit) else None,
        passed=False,
        sentence=f"{name} could not be computed, so it cannot pass",
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _short(value: float) -> str:
    """Four decimals, or none where the number is large: bytes."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
