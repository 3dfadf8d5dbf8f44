"""The learning rate as a function of the step: nothing to save but the step, and for ``plateau`` three numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelyard.train.sections import ScheduleConfig


def rate_fraction(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Fraction of the learning rate for the optimizer step numbered ``step`` (from 0) of ``total_steps``."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return _fraction_left(config, min(done, 1.0))


def _fraction_left(config: ScheduleConfig, done: float) -> float:
    low = config.final_fraction
    match config.name:
        case "cosine":  # Loshchilov and Hutter 2017, arXiv 1608.03983, one period
            return low + (1 - low) * (1 + math.cos(math.pi * done)) / 2
        case "linear":
            return 1 - (1 - low) * done
        case "wsd":  # warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395
            fallen = max(0.0, done - (1 - config.decay_fraction)) / config.decay_fraction
            return 1 - (1 - low) * fallen
        case _:
            return 1.0


@dataclass
class Plateau:
    """Lowers the rate when the validation loss stops falling; part of every checkpoint."""

    fraction: float = 1.0
    best_loss: float = math.inf
    waited: int = 0

    def observe(self, config: ScheduleConfig, loss: float) -> None:
        """Take note of a validation."""
        if config.name != "plateau":
            return
        if loss < self.best_loss:
            self.best_loss, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= config.plateau_patience:
            self.fraction = max(self.fraction * config.plateau_factor, config.final_fraction)
            self.waited = 0
