"""The search: what to try next, and what came of it. Pure: it builds nothing, measures nothing, knows no store.

`Search.ask` says what to do, `Search.tell` takes what came of it, in any order. What is asked next depends only on what
was told, so a search that was interrupted goes on where its results end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from modelyard.artifacts import Frozen
from modelyard.compress.config import SearchConfig
from modelyard.compress.quality import Drop, broken_limits
from modelyard.compress.techniques import FormTechnique, NetworkTechnique
from modelyard.errors import ConversionFailed
from modelyard.model_package import FLOAT_FORM


class Recipe(Frozen):
    """One candidate: a network (None: as it was trained) in a form (None: float, by onnxruntime)."""

    network: NetworkTechnique | None = None
    form: FormTechnique | None = None

    @property
    def name(self) -> str:
        """``int8``, ``units-0.5``, ``units-0.5-int8``; the name of the form in the package as well."""
        network = [self.network.label] if self.network else []
        form = [self.form.form] if self.form else []
        return "-".join([*network, *form]) or FLOAT_FORM

    @property
    def trunk(self) -> str:
        """Name of the float form of the same network, which the others are made from."""
        return Recipe(network=self.network).name


class Built(Frozen):
    """A candidate that exists.

    Attributes:
        size_bytes: of its files.
        parameters: of the network, whatever their precision.
        macs: multiply-accumulates for one row.
        drops: metric -> how much worse than the float model on the validation split.
    """

    size_bytes: int
    parameters: int
    macs: int
    drops: dict[str, Drop]


class Fell(Frozen):
    """A candidate that could not be built or measured, and why."""

    reason: str


class Latency(Frozen):
    """One candidate at one batch size.

    Attributes:
        p50_ms, p99_ms: over all runs.
        ratio: its median over the float form's of the same turn; the median of the turns.
        noise: how far that median could have come out otherwise: the half width of its 95 % interval, as a fraction.
    """

    p50_ms: float
    p99_ms: float
    ratio: float
    noise: float = 0.0


class Measured(Frozen):
    """Latency by batch size."""

    latency: dict[int, Latency]


Outcome = Built | Measured | Fell


class Ask(Frozen):
    """What to do next: build these recipes, or measure these together (the float form always is among them)."""

    what: Literal["build", "measure"]
    recipes: list[Recipe]


class Standing(Frozen):
    """One candidate at the end.

    Attributes:
        outcome: ``winner``, ``loser`` (inside the budget), ``outside`` (of it), ``dropped`` (never built) or ``fell``.
        reason: why it lost.
        gain: ``compressed`` (fewer or smaller parameters), ``optimised`` (the same ones, faster) or nothing.
        on_front: no other candidate is at least as small, fast and right, and better in one of them.
    """

    name: str
    outcome: Literal["winner", "loser", "outside", "dropped", "fell"]
    reason: str = ""
    gain: Literal["compressed", "optimised", ""] = ""
    on_front: bool = False
    built: Built | None = None
    measured: Measured | None = None


class Decision(Frozen):
    """How the search ended: the winner's name (`float` where nothing inside the budget beats it), why, and everybody."""

    winner: str
    why: str
    standings: list[Standing]


class Search:
    """The state of one search.

    Args:
        headline: the task's main metric, whose drop is limited where the budget names none.
    """

    def __init__(self, config: SearchConfig, headline: str) -> None:
        self.config = config
        self._limits = config.budget.limits(headline)
        self._headline = next(iter(self._limits))
        self._built: dict[str, Built] = {}
        self._measured: dict[str, Measured] = {}
        self._fell: dict[str, str] = {}
        self._rounds = _rounds(config)
        self.recipes = {recipe.name: recipe for recipes in self._rounds for recipe in recipes}

    def ask(self) -> Ask | None:
        """What to do next; None when all is done."""
        if FLOAT_FORM in self._fell:
            return None
        for recipes in self._rounds:
            if open_ones := [one for one in recipes if self._is_open(one)]:
                return Ask(what="build", recipes=open_ones)
        waiting = [name for name in self.recipes if self._may_win(name) and name not in self._measured]
        if waiting and waiting != [FLOAT_FORM]:
            names = dict.fromkeys([FLOAT_FORM, *waiting])
            return Ask(what="measure", recipes=[self.recipes[name] for name in names])
        return None

    def tell(self, name: str, outcome: Outcome) -> None:
        """Take what came of a recipe."""
        if isinstance(outcome, Built):
            self._built[name] = outcome
        elif isinstance(outcome, Measured):
            self._measured[name] = outcome
        else:
            self._fell[name] = outcome.reason

    def fell(self, name: str) -> str:
        """Why a recipe fell; empty: it did not."""
        return self._fell.get(name, "")

    def decide(self) -> Decision:
        """The winner, why, and why each other candidate lost."""
        inside = [name for name in self.recipes if name in self._measured and self._may_win(name)]
        winner = self._best(inside) if inside else FLOAT_FORM
        why = self._why(winner, inside)
        front = _pareto_front({name: self._coordinates(name) for name in self._measured if name in self._built})
        return Decision(
            winner=winner, why=why, standings=[self._standing(name, winner, front) for name in self.recipes]
        )

    # -- what is still worth a try ------------------------------------------------------------------------

    def _is_open(self, recipe: Recipe) -> bool:
        known = recipe.name in self._built or recipe.name in self._fell
        return not known and not self._why_dropped(recipe)

    def _why_dropped(self, recipe: Recipe) -> str:
        """Why a form of a smaller network is not tried, judged by the network's float form; empty: it is."""
        if recipe.network is None or recipe.form is None:
            return ""
        trunk = recipe.network.label
        if trunk in self._fell:
            return f"its network {trunk} fell: {self._fell[trunk]}"
        if trunk not in self._built:
            return ""
        if broken := broken_limits(self._built[trunk].drops, self._limits):
            return f"its network {trunk} is outside the budget as it is: {'; '.join(broken)}"
        whole = self._built.get(FLOAT_FORM)
        if whole and self._built[trunk].macs >= whole.macs and self._built[trunk].parameters >= whole.parameters:
            return f"its network {trunk} has no fewer parameters or multiplications than the trained one"
        return ""

    def _may_win(self, name: str) -> bool:
        return name in self._built and name not in self._fell and not self._problems(name)

    def _problems(self, name: str) -> list[str]:
        """The limits that a built candidate breaks, as far as is known."""
        built, budget = self._built[name], self.config.budget
        # The float model cannot be worse than itself, however few rows there are to prove it by.
        found = [] if name == FLOAT_FORM else broken_limits(built.drops, self._limits)
        if budget.max_size_bytes is not None and built.size_bytes > budget.max_size_bytes:
            found.append(f"{built.size_bytes} bytes, allowed are {budget.max_size_bytes}")
        whole = self._built.get(FLOAT_FORM)
        if budget.max_size_fraction is not None and whole:
            fraction = built.size_bytes / whole.size_bytes
            if fraction > budget.max_size_fraction:
                found.append(f"{fraction:.3f} of the float size, allowed is {budget.max_size_fraction:g}")
        return [*found, *self._too_slow(name)]

    def _too_slow(self, name: str) -> Iterable[str]:
        measured = self._measured.get(name)
        if measured is None:
            return
        for limit in self.config.budget.latency:
            seen = measured.latency[limit.batch]
            for label, value, allowed in (("p50", seen.p50_ms, limit.p50_ms), ("p99", seen.p99_ms, limit.p99_ms)):
                if allowed is not None and value > allowed:
                    yield f"{label} at batch {limit.batch} is {value:.4g} ms, allowed are {allowed:g}"

    # -- the decision -------------------------------------------------------------------------------------

    def _best(self, names: list[str]) -> str:
        """The preferred one: the smallest, or the smallest of those that are as fast as the fastest."""
        tied = names
        if self.config.prefer == "speed":
            fastest = min(names, key=lambda name: self._speed(name).ratio)
            tied = [name for name in names if self._as_fast(name, fastest)]
        return min(tied, key=lambda name: (self._built[name].size_bytes, self._speed(name).ratio, name))

    def _as_fast(self, name: str, fastest: str) -> bool:
        mine, best = self._speed(name), self._speed(fastest)
        margin = max(self.config.tie_fraction, mine.noise, best.noise)
        return mine.ratio <= best.ratio * (1 + margin)

    def _speed(self, name: str) -> Latency:
        """At the first batch size that was measured."""
        return next(iter(self._measured[name].latency.values()))

    def _why(self, winner: str, inside: list[str]) -> str:
        if not inside:
            return "no candidate is inside the budget: the float model goes on as it is"
        if winner == FLOAT_FORM:
            return f"nothing inside the budget beats the float model in {self.config.prefer}: it goes on as it is"
        built, whole = self._built[winner], self._built[FLOAT_FORM]
        said = (
            f"{built.size_bytes / whole.size_bytes:.2f} of the float size, {self._speed(winner).ratio:.2f} of its latency,"
            f" {self._headline} {built.drops[self._headline].value:.4f}"
        )
        wish = "smallest" if self.config.prefer == "size" else "fastest, or as fast and smaller,"
        return f"{said}; the {wish} of {len(inside)} candidates inside the budget"

    def _standing(self, name: str, winner: str, front: set[str]) -> Standing:
        built, measured = self._built.get(name), self._measured.get(name)
        outcome, reason = self._outcome(name, winner)
        gain = self._gain(name) if built else ""
        return Standing(
            name=name, outcome=outcome, reason=reason, gain=gain, on_front=name in front, built=built, measured=measured
        )

    def _outcome(self, name: str, winner: str) -> tuple[Literal["winner", "loser", "outside", "dropped", "fell"], str]:
        if name == winner:
            return "winner", ""
        if name in self._fell:
            return "fell", self._fell[name]
        if name not in self._built:
            return "dropped", self._why_dropped(self.recipes[name]) or "the search ended before its turn"
        if problems := self._problems(name):
            return "outside", "; ".join(problems)
        if name not in self._measured:
            return "outside", "it was not measured"
        return "loser", self._why_lost(name, winner)

    def _why_lost(self, name: str, winner: str) -> str:
        if winner not in self._measured:
            return "the float model goes on"
        size, best_size = self._built[name].size_bytes, self._built[winner].size_bytes
        if self.config.prefer == "speed" and not self._as_fast(name, winner):
            return (
                f"slower than {winner}: {self._speed(name).ratio:.2f} against {self._speed(winner).ratio:.2f} of float"
            )
        if size > best_size:
            return f"larger than {winner}: {size} bytes against {best_size}"
        return f"equal to {winner} within the noise"

    def _gain(self, name: str) -> Literal["compressed", "optimised", ""]:
        built, whole = self._built[name], self._built[FLOAT_FORM]
        # A few bytes more or less are names and layout, not parameters.
        if built.parameters < whole.parameters or built.size_bytes < 0.9 * whole.size_bytes:
            return "compressed"
        measured = self._measured.get(name)
        faster = measured is not None and self._speed(name).ratio * (1 + self._speed(name).noise) < 1
        return "optimised" if faster and name != FLOAT_FORM else ""

    def _coordinates(self, name: str) -> tuple[float, float, float]:
        """Size, latency, drop: less is better in each."""
        built = self._built[name]
        drop = built.drops.get(self._headline)
        return (float(built.size_bytes), self._speed(name).ratio, drop.drop if drop else 0.0)


def conduct(
    search: Search,
    build: Callable[[Sequence[Recipe]], Mapping[str, Outcome]],
    measure: Callable[[Sequence[Recipe]], Mapping[str, Outcome]],
) -> Decision:
    """Do what a search asks until it asks no more.

    Args:
        build, measure: carry out what is asked; every recipe asked for must have an outcome.

    Raises:
        ConversionFailed: the float form itself fell: there is nothing to hold the others against, and nothing to serve.
    """
    while asked := search.ask():
        outcomes = (build if asked.what == "build" else measure)(asked.recipes)
        for recipe in asked.recipes:
            search.tell(recipe.name, outcomes[recipe.name])
    if reason := search.fell(FLOAT_FORM):
        raise ConversionFailed(f"the form {FLOAT_FORM!r} cannot be made: {reason}")
    return search.decide()


def _rounds(config: SearchConfig) -> list[list[Recipe]]:
    """Cheap first: float, forms of the trained network, networks that need no training, those that do, their forms."""
    forms = [Recipe(form=form) for form in config.forms]
    quick = [Recipe(network=one) for one in config.networks if not one.needs_training]
    slow = [Recipe(network=one) for one in config.networks if one.needs_training]
    trunks = [trunk for trunk in (*quick, *slow) if trunk.network and trunk.network.takes_forms]
    combined = [Recipe(network=trunk.network, form=form) for trunk in trunks for form in config.forms]
    return [[Recipe()], forms, quick, slow, combined]


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
