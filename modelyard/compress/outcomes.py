"""What a search is made of: recipes, what came of them, and how each of them ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.compress.quality import Drop
from modelyard.compress.techniques import FormTechnique, NetworkTechnique
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
        p50_ms, p99_ms: over the runs of a process; the median of the processes.
        ratio: its median over the float form's of the same turn; the median of the turns, the mean of the processes without the
            fifth of them on either end.
        noise: how far that could have come out otherwise: the half width of its 95 % interval, as a fraction.
        takes: number of the process -> its ratio.
    """

    p50_ms: float
    p99_ms: float
    ratio: float
    noise: float = 0.0
    takes: dict[int, float] = Field(default_factory=dict)


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


@dataclass
class Told:
    """What is known of candidates so far, by name."""

    built: dict[str, Built] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    fell: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, outcome: Outcome) -> None:
        """One more outcome."""
        if isinstance(outcome, Built):
            self.built[name] = outcome
        elif isinstance(outcome, Measured):
            self.measured[name] = outcome
        else:
            self.fell[name] = outcome.reason

    def speed(self, name: str) -> Latency:
        """At the first batch size that was measured."""
        return next(iter(self.measured[name].latency.values()))
