"""What training a network takes in memory, estimated before a rank is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelyard.errors import ConfigError
from modelyard.train.config import TrainConfig
from modelyard.train.sections import OptimizerName
from modelyard.train.strategy_config import SHARDED

GB = 1e9
WEIGHT_BYTES = 4  # fp32, whatever the precision of the arithmetic
# Numbers an optimizer keeps for each weight.
OPTIMIZER_NUMBERS: dict[OptimizerName, int] = {
    "gd": 0, "sgd": 0, "adagrad": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "muon": 1,
}  # fmt: skip
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes over all ranks of one machine, without activations and data.

    Attributes:
        beginning: before the first step, of strategies that shard: what ranks hold until each has its share.
    """

    beginning: float
    weights: float
    gradients: float
    optimizer: float
    average: float
    checkpoint: float

    @property
    def total(self) -> float:
        return max(self.beginning, self.weights + self.gradients + self.optimizer + self.average + self.checkpoint)

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "average": self.average,
            "a checkpoint being saved": self.checkpoint,
        }
        listed = ", ".join(f"{name} {value / GB:,.1f}" for name, value in parts.items() if value)
        before = f"; before the first step {self.beginning / GB:,.1f}" if self.beginning else ""
        return f"{self.total / GB:,.1f} GB ({listed}{before}; activations and data come on top)"


def estimate_memory(config: TrainConfig, num_weights: int, largest: int | None = None) -> MemoryEstimate:
    """What the ranks hold together: every rank a copy under ddp; the shards of one copy under fsdp and tensor, of some
    under hsdp; servers of parameters hold one optimizer state between them, and the sum of gradients.

    Args:
        largest: numbers in the largest single weight, where ranks that shard draw weights one by one, each whole until its
            part is kept. None: they begin with the whole network.
    """
    size = float(num_weights * WEIGHT_BYTES)
    served = config.strategy == "parameter_server"
    shared = 1 / config.node_range[0]  # nodes that may not come are not counted upon
    copies = {"fsdp": shared, "tensor": shared, "hsdp": config.ranks // config.hsdp.shards}.get(
        config.strategy, config.ranks
    )
    whole = size * config.ranks if largest is None else size * copies + largest * WEIGHT_BYTES * config.ranks
    numbers = OPTIMIZER_NUMBERS[config.optimizer.name] + (config.optimizer.momentum > 0)
    average = size * copies if config.ema_decay else 0.0
    optimizer = size * (1 if served else copies) * numbers
    if config.strategy == "diloco":
        optimizer += 2 * size * copies  # the weights that all shared last, and the outer momentum
    return MemoryEstimate(
        beginning=whole if config.strategy in SHARDED else 0.0,
        weights=size * copies,
        gradients=size * (config.ranks - config.parameter_server.servers + 1 if served else copies),
        optimizer=optimizer,
        average=average,
        checkpoint=size * copies + optimizer + average,
    )


def require_memory(
    config: TrainConfig, num_weights: int, available: float, *, largest: int | None = None, whole: str = ""
) -> None:
    """Refuse a network that cannot be trained in this machine's memory.

    Args:
        available: bytes that processes may still take.
        largest: as for `estimate_memory`.
        whole: why ranks that shard begin with the whole network.

    Raises:
        ConfigError: with the estimate and what there is.
    """
    needed = estimate_memory(config, num_weights, largest)
    if needed.total <= available:
        return
    because = f"; each rank begins with the whole network: {whole}" if whole else ""
    advice = "a smaller network, fewer ranks" + ("" if config.strategy in SHARDED else ", train.strategy fsdp")
    raise ConfigError(
        "train.model",
        f"training {num_weights:,} weights with {config.ranks} ranks takes about {needed}; {available / GB:,.1f} GB are"
        f" free here{because}; take {advice}, an optimizer that keeps less, or a larger machine",
    )


def free_memory() -> float:
    """Bytes that processes of this machine, or of its container, may still take."""
    import psutil

    free = float(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, float(int(text) - int(used.read_text())))
    return free
