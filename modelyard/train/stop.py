"""When training ends: every rule by name, and what it says for people."""

from __future__ import annotations

from modelyard.errors import TargetNotReached
from modelyard.metrics import LOWER_IS_BETTER
from modelyard.train.config import TrainConfig
from modelyard.train.progress import Progress


def reached(config: TrainConfig, metric: str, progress: Progress) -> bool:
    """Whether the best validation meets the target."""
    if config.target is None or progress.best < 0:
        return False
    value = progress.best_validation[metric]
    return value <= config.target if metric in LOWER_IS_BETTER else value >= config.target


def reason(config: TrainConfig, metric: str, progress: Progress, rows: int) -> str:
    """The first rule that ends training here, by its key in the config; empty to go on.

    Args:
        rows: of the training split.
    """
    if reached(config, metric, progress):
        return "target"
    stop = config.stop
    limits = (
        ("stop.patience", progress.waited, stop.patience),
        ("stop.max_steps", progress.step, stop.max_steps),
        ("stop.max_tokens", progress.tokens, stop.max_tokens),
        ("max_epochs", progress.samples, config.max_epochs * rows),
        ("stop.max_seconds", progress.seconds, stop.max_seconds),
    )
    return next((name for name, done, limit in limits if limit is not None and done >= limit), "")


def require_target(config: TrainConfig, metric: str, progress: Progress) -> None:
    """Refuse a training that ended before its target.

    Raises:
        TargetNotReached: says how far it got, and which limit came first.
    """
    if config.target is None or reached(config, metric, progress):
        return
    best = progress.best_validation
    limit = {
        "max_epochs": f"train.max_epochs={config.max_epochs}",
        "stop.max_steps": f"train.stop.max_steps={config.stop.max_steps}",
        "stop.max_tokens": f"train.stop.max_tokens={config.stop.max_tokens}",
        "stop.max_seconds": f"train.stop.max_seconds={config.stop.max_seconds}",
        "stop.patience": f"train.stop.patience={config.stop.patience}",
    }[progress.stopped_by]
    raise TargetNotReached(
        f"{metric} reached {best[metric]:.4f} (epoch {best['epoch']:g}, step {best['step']:g}) within"
        f" {limit}; train.target is {config.target:.4f}"
    )
