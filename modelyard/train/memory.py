"""What training a network takes in memory, estimated before a rank is started."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
class Weights:
    """What there is to train, as far as memory is concerned.

    Attributes:
        count: numbers in all of them.
        largest: in the largest single one, where ranks that shard draw weights one by one, each whole until its part is
            kept. None: they begin with the whole network.
        whole: why ranks that shard begin with the whole network.
    """

    count: int
    largest: int | None = None
    whole: str = ""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes that are free where ranks run.

    Attributes:
        host: that processes of the machine may still take.
        ranks: of the training that share it; None: all those of a node.
        device: on the accelerator of one rank; None: ranks run on the CPU.
        name: of that accelerator.
    """

    host: float
    ranks: int | None = None
    device: float | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes over all ranks of one machine, without activations and data.

    Attributes:
        built: what ranks build in the machine's memory before it goes to where they compute.
        beginning: before the first step, of strategies that shard: what ranks hold until each has its share.
    """

    built: float
    beginning: float
    weights: float
    gradients: float
    optimizer: float
    average: float
    checkpoint: float

    @property
    def total(self) -> float:
        """Of ranks on CPUs, who have one memory for everything."""
        return max(self.beginning, self.computing + self.checkpoint)

    @property
    def computing(self) -> float:
        """What steps need, and an accelerator has to hold."""
        return self.weights + self.gradients + self.optimizer + self.average

    def of(self, ranks: float) -> MemoryEstimate:
        """The same for so many times as many ranks."""
        return MemoryEstimate(**{name: value * ranks for name, value in asdict(self).items()})

    def __str__(self) -> str:
        before = f"; before the first step {self.beginning / GB:,.1f}" if self.beginning else ""
        saved = {"a checkpoint being saved": self.checkpoint}
        return f"{self.total / GB:,.1f} GB ({_listed(self._parts | saved)}{before}; activations and data come on top)"

    def on_device(self, *, whole: bool) -> str:
        """What an accelerator would have to hold, in words."""
        before = f"; before the first step {self.beginning / GB:,.1f}" if whole and self.beginning else ""
        return f"{_listed(self._parts)}{before}; activations come on top"

    @property
    def _parts(self) -> dict[str, float]:
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "average": self.average,
        }


def estimate_memory(config: TrainConfig, num_weights: int, largest: int | None = None) -> MemoryEstimate:
    """What the ranks hold together: every rank a copy under ddp; the shards of one copy under fsdp and tensor, of some
    under hsdp; servers of parameters hold one optimizer state between them, and the sum of gradients.

    Args:
        largest: as for `Weights`.
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
        built=float((num_weights if largest is None else largest) * WEIGHT_BYTES * config.ranks),
        beginning=whole if config.strategy in SHARDED else 0.0,
        weights=size * copies,
        gradients=size * (config.ranks - config.parameter_server.servers + 1 if served else copies),
        optimizer=optimizer,
        average=average,
        checkpoint=size * copies + optimizer + average,
    )


def require_memory(config: TrainConfig, weights: Weights, room: Room) -> None:
    """Refuse a network that cannot be trained in the memory that there is.

    Raises:
        ConfigError: with the estimate and what there is.
    """
    of_node = estimate_memory(config, weights.count, weights.largest)
    here = of_node.of((room.ranks or config.ranks) / config.ranks)
    if room.device is None:
        if here.total > room.host:
            raise _too_large(config, weights, room, str(here), f"{room.host / GB:,.1f} GB are free here")
        return
    own, is_whole = of_node.of(1 / config.ranks), weights.largest is None
    held, beside = max(own.computing, own.beginning * is_whole), max(here.built, here.checkpoint)
    if held > room.device:
        needed = f"{held / GB:,.1f} GB on the device of each ({own.on_device(whole=is_whole)})"
        raise _too_large(config, weights, room, needed, f"{room.device / GB:,.1f} GB are free on {room.name}")
    if beside > room.host:
        needed = (
            f"{beside / GB:,.1f} GB beside their devices (building the network {here.built / GB:,.1f}, a checkpoint being"
            f" saved {here.checkpoint / GB:,.1f})"
        )
        raise _too_large(config, weights, room, needed, f"{room.host / GB:,.1f} GB are free here")


def _too_large(config: TrainConfig, weights: Weights, room: Room, needed: str, free: str) -> ConfigError:
    ranks = f"{room.ranks or config.ranks} ranks" + (" on this machine" if room.ranks else "")
    because = f"; each rank begins with the whole network: {weights.whole}" if weights.whole else ""
    on_devices = room.device is not None and config.strategy in SHARDED
    fewer = "more devices" if on_devices else "fewer ranks"
    advice = f"a smaller network, {fewer}" + ("" if config.strategy in SHARDED else ", train.strategy fsdp")
    return ConfigError(
        "train.model",
        f"training {weights.count:,} weights with {ranks} takes about {needed}; {free}{because}; take {advice}, an"
        " optimizer that keeps less, or a larger machine",
    )


def free_memory() -> float:
    """Bytes that processes of this machine, or of its container, may still take."""
    import psutil

    free = float(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, float(int(text) - int(used.read_text())))
    return free


def _listed(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {value / GB:,.1f}" for name, value in parts.items() if value)
