"""What training has seen and decided so far, as plain values: the part of a checkpoint that holds no tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from modelyard.metrics import LOWER_IS_BETTER
from modelyard.train.schedules import Plateau


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        step: optimizer steps done.
        samples: rows seen since the beginning: the global offset in the stream of epochs, whatever the number of ranks.
        tokens: in them, where ``stop.max_tokens`` asks for it.
        seconds: spent training, over all resumes.
        validations: each one's metrics, with ``train_loss``, ``step`` and ``epoch``.
        best: index of the best validation, -1 before the first.
        waited: validations since.
        rows_counted: rows in the loss that is being summed up since the last validation.
        stopped_by: the rule that ended training, empty while it goes on.
        rewound_at: step at which the loss was lost and training went back, -1 if never.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    validations: list[dict[str, float]] = field(default_factory=list)
    best: int = -1
    waited: int = 0
    rows_counted: int = 0
    stopped_by: str = ""
    rewound_at: int = -1
    plateau: Plateau = field(default_factory=Plateau)
    loss_scale: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    world_size: int = 1

    def as_json(self) -> dict[str, Any]:
        """Plain values; infinities become None, for JSON has none."""
        found = asdict(self)
        found["plateau"]["best_loss"] = _finite(self.plateau.best_loss)
        return found

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        found = cls(**values)
        plateau = dict(values["plateau"])
        plateau["best_loss"] = math.inf if plateau["best_loss"] is None else plateau["best_loss"]
        found.plateau = Plateau(**plateau)
        return found

    @property
    def best_validation(self) -> dict[str, float]:
        return self.validations[self.best]

    def remember(self, metrics: dict[str, float], metric: str) -> bool:
        """Add a validation; whether it is the best so far."""
        self.validations.append(metrics)
        if self.best < 0 or score(metrics, metric) > score(self.best_validation, metric):
            self.best, self.waited = len(self.validations) - 1, 0
            return True
        self.waited += 1
        return False


def score(metrics: dict[str, float], metric: str) -> tuple[float, float]:
    """What validations are ordered by, more is better. On a small split many tie: then the lower loss wins."""
    value = metrics[metric]
    return (-value if metric in LOWER_IS_BETTER else value, -metrics["loss"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
