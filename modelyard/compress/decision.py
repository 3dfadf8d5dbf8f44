"""Who is inside the budget, who wins, and why each of the others lost. Numbers in, sentences out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from modelyard.compress.config import SearchConfig
from modelyard.compress.looks import as_fast_as_any, slower_by
from modelyard.compress.outcomes import Decision, Standing, Told
from modelyard.compress.quality import broken_limits
from modelyard.model_package import FLOAT_FORM

Ending = Literal["winner", "loser", "outside", "dropped", "fell"]


class Judge:
    """Holds what was told against the budget.

    Args:
        headline: the task's main metric, whose drop is limited where the budget names none.
        told: as it grows.
    """

    def __init__(self, config: SearchConfig, headline: str, told: Told) -> None:
        self.limits = config.budget.limits(headline)
        self._config, self._told = config, told
        self._headline = next(iter(self.limits))

    def may_win(self, name: str) -> bool:
        """Whether a candidate exists and breaks no limit, as far as is known."""
        return name in self._told.built and name not in self._told.fell and not self._problems(name)

    def decide(self, dropped: Mapping[str, str]) -> Decision:
        """The winner, why, and why each other candidate lost.

        Args:
            dropped: every candidate's name, and why it was not tried if that is so.
        """
        inside = [name for name in dropped if name in self._told.measured and self.may_win(name)]
        winner = self._best(inside) if inside else FLOAT_FORM
        front = _pareto_front(
            {name: self._coordinates(name) for name in self._told.measured if name in self._told.built}
        )
        standings = [self._standing(name, winner, reason, front, inside) for name, reason in dropped.items()]
        return Decision(winner=winner, why=self._why(winner, inside), standings=standings)

    def _problems(self, name: str) -> list[str]:
        """The limits that a built candidate breaks, as far as is known."""
        built, budget = self._told.built[name], self._config.budget
        # The float model cannot be worse than itself, however few rows there are to prove it by.
        found = [] if name == FLOAT_FORM else broken_limits(built.drops, self.limits)
        if budget.max_size_bytes is not None and built.size_bytes > budget.max_size_bytes:
            found.append(f"{built.size_bytes} bytes, allowed are {budget.max_size_bytes}")
        whole = self._told.built.get(FLOAT_FORM)
        if budget.max_size_fraction is not None and whole:
            fraction = built.size_bytes / whole.size_bytes
            if fraction > budget.max_size_fraction:
                found.append(f"{fraction:.3f} of the float size, allowed is {budget.max_size_fraction:g}")
        return [*found, *self._too_slow(name)]

    def _too_slow(self, name: str) -> Iterable[str]:
        measured = self._told.measured.get(name)
        if measured is None:
            return
        for limit in self._config.budget.latency:
            seen = measured.latency[limit.batch]
            for label, value, allowed in (("p50", seen.p50_ms, limit.p50_ms), ("p99", seen.p99_ms, limit.p99_ms)):
                if allowed is not None and value > allowed:
                    yield f"{label} at batch {limit.batch} is {value:.4g} ms, allowed are {allowed:g}"

    def _best(self, names: list[str]) -> str:
        """The preferred one: the smallest, or the smallest of those that are as fast as the fastest."""
        tied = names
        if self._config.prefer == "speed":
            ratios = {name: self._told.speed(name) for name in names}
            # A machine too busy to tell must not decide: who is not shown to be slower by more than a tie is as fast.
            tied = as_fast_as_any(ratios, self._config.tie_fraction) or [
                min(names, key=lambda name: ratios[name].ratio)
            ]
        # Of one size the name decides: what is equal within the noise must not be told apart by it.
        return min(tied, key=lambda name: (self._told.built[name].size_bytes, name))

    def _faster(self, name: str, inside: list[str]) -> str | None:
        """The fastest of those that a candidate is shown to be slower than, by more than a tie."""
        mine, speed = self._told.speed(name), self._told.speed
        faster = [other for other in inside if slower_by(mine, speed(other))[0] > self._config.tie_fraction]
        return min(faster, key=lambda other: speed(other).ratio, default=None)

    def _why(self, winner: str, inside: list[str]) -> str:
        if not inside:
            return "no candidate is inside the budget: the float model goes on as it is"
        if winner == FLOAT_FORM:
            return f"nothing inside the budget beats the float model in {self._config.prefer}: it goes on as it is"
        built, whole = self._told.built[winner], self._told.built[FLOAT_FORM]
        said = (
            f"{built.size_bytes / whole.size_bytes:.2f} of the float size, {self._told.speed(winner).ratio:.2f} of its latency,"
            f" {self._headline} {built.drops[self._headline].value:.4f}"
        )
        wish = "smallest" if self._config.prefer == "size" else "fastest, or as fast and smaller,"
        return f"{said}; the {wish} of {len(inside)} candidates inside the budget"

    def _standing(self, name: str, winner: str, dropped: str, front: set[str], inside: list[str]) -> Standing:
        built, measured = self._told.built.get(name), self._told.measured.get(name)
        outcome, reason = self._outcome(name, winner, dropped, inside)
        gain = self._gain(name) if built else ""
        return Standing(
            name=name, outcome=outcome, reason=reason, gain=gain, on_front=name in front, built=built, measured=measured
        )

    def _outcome(self, name: str, winner: str, dropped: str, inside: list[str]) -> tuple[Ending, str]:
        if name == winner:
            return "winner", ""
        if name in self._told.fell:
            return "fell", self._told.fell[name]
        if name not in self._told.built:
            return "dropped", dropped or "the search ended before its turn"
        if problems := self._problems(name):
            return "outside", "; ".join(problems)
        if name not in self._told.measured:
            return "outside", "it was not measured"
        return "loser", self._why_lost(name, winner, inside)

    def _why_lost(self, name: str, winner: str, inside: list[str]) -> str:
        if winner not in self._told.measured:
            return "the float model goes on"
        size, best_size = self._told.built[name].size_bytes, self._told.built[winner].size_bytes
        if self._config.prefer == "speed" and (faster := self._faster(name, inside)):
            mine, best = self._told.speed(name).ratio, self._told.speed(faster).ratio
            return f"slower than {faster}: {mine:.2f} against {best:.2f} of float"
        if size > best_size:
            return f"larger than {winner}: {size} bytes against {best_size}"
        return f"equal to {winner} within the noise"

    def _gain(self, name: str) -> Literal["compressed", "optimised", ""]:
        built, whole = self._told.built[name], self._told.built[FLOAT_FORM]
        # A few bytes more or less are names and layout, not parameters.
        if built.parameters < whole.parameters or built.size_bytes < 0.9 * whole.size_bytes:
            return "compressed"
        if name == FLOAT_FORM or name not in self._told.measured:
            return ""
        seen = self._told.speed(name)
        return "optimised" if seen.ratio * (1 + seen.noise) < 1 else ""

    def _coordinates(self, name: str) -> tuple[float, float, float]:
        """Size, latency, drop: less is better in each."""
        built = self._told.built[name]
        drop = built.drops.get(self._headline)
        return (float(built.size_bytes), self._told.speed(name).ratio, drop.drop if drop else 0.0)


def _pareto_front(points: Mapping[str, tuple[float, ...]]) -> set[str]:
    """Names of the points that no other point equals or beats in everything and beats in something."""
    return {
        name
        for name, point in points.items()
        if not any(
            other != point and all(theirs <= mine for theirs, mine in zip(other, point, strict=True))
            for other in points.values()
        )
    }
