"""How to train. Torch is not imported here, so that forms and presets can be checked without it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.masking import MaskingConfig
from modelyard.models.config import MlpConfig, ModelConfig, RecommenderConfig
from modelyard.models.weights import MAX_SHARD_BYTES
from modelyard.nearest import one_of
from modelyard.train.sections import (
    CheckpointConfig,
    DistillConfig,
    InitConfig,
    OptimizerConfig,
    PairsConfig,
    ScheduleConfig,
    StopConfig,
)
from modelyard.train.strategy_config import (
    SHARDED,
    DeviceName,
    DilocoConfig,
    FsdpConfig,
    HsdpConfig,
    LauncherName,
    ParameterServerConfig,
    RayConfig,
    StrategyName,
    TensorConfig,
)

PrecisionName = Literal["fp32", "bf16", "fp16"]


# What only decides how the work is carried out, never what comes out of it.
OPERATIONAL = {
    "checkpoint_every_epochs",
    "checkpoint",
    "launcher",
    "device",
    "ray",
    "rendezvous",
    "max_restarts",
    "silence_seconds",
}
# Sections that speak of the strategy of their name alone.
OF_ONE_STRATEGY = {"hsdp", "tensor", "parameter_server", "diloco"}
# Names of artifacts: what they stand for today is an input of the work, by its digest.
NAMES = {"init": {"model", "checkpoint"}, "distill": {"teacher"}, "model": {"source"}}


def _in_quotes(nodes: Any) -> Any:
    """YAML reads an unquoted 1:4 as a number to the base of 60, so no number is taken for a number of machines."""
    if isinstance(nodes, int):
        raise ValueError('write it in quotes: "2", or "1:4" for one to four')  # noqa: TRY004 - pydantic answers with a ValueError's words
    return nodes


class TrainConfig(Frozen):
    """Config of the training stage.

    Attributes:
        batch_size: rows per optimizer step over all ranks together.
        shuffle_window: about how many rows an epoch shuffles among each other, for a split that is more than memory
            holds: its disk then reads neighbouring rows together. None: all rows.
        accumulate: forward and backward passes that each rank makes of its share of a step: less memory, same result.
        clip_norm: largest gradient norm; 0 turns it off.
        precision: of the arithmetic; weights and optimizer stay fp32. fp16 scales the loss.
        compile: `torch.compile`; where that fails training goes on without, and says so.
        ema_decay: keep a moving average of the weights with this decay, and validate and publish that.
        strategy: ``ddp`` copies the network to each rank, ``fsdp`` shards it, ``hsdp`` shards copies, ``tensor`` splits its
            matrices, ``parameter_server`` has ranks that hold the weights for the others, ``diloco`` lets ranks train by
            themselves between rare averages.
        masking: which tokens are hidden, for masked language modelling.
        target: stop as soon as ``stop.metric`` on the validation split reaches this; None trains to a limit and keeps
            the best weights.
        ranks: processes that share each step, on each node.
        nodes: machines that share the training: a number, or ``least:most``, between which they may come and go.
        launcher: who starts the ranks: ``torch`` on this machine and wherever its launcher is started, or ``ray`` on the
            nodes of a Ray cluster. With ``ray``, ``nodes: 1`` is anywhere in the cluster, together where they fit.
        device: what ranks compute on, one each: ``auto`` takes the machine's accelerators if it has any, else the CPU; ``cpu``
            leaves accelerators alone; ``cuda`` (also AMD's), ``xpu``, ``mps`` and ``mtia`` insist on theirs. Which of
            several, the machine says (``CUDA_VISIBLE_DEVICES``).
        rendezvous: for torch's launcher: ``host:port`` where nodes meet, an address of the one that runs the flow, free there; the others start
            ``python -m modelyard.train.launch <job>``.
        max_restarts: how often the launcher restarts the group after a lost rank.
        silence_seconds: a group that says nothing for so long is taken for hung, ended and tried again.
        max_shard_bytes: of weights in one file of the trained model; above it they are published in several, with an index,
            as `transformers` does, and publishing holds one file's in memory at a time.
    """

    model: ModelConfig = MlpConfig()
    init: InitConfig = InitConfig()
    distill: DistillConfig = DistillConfig()
    pairs: PairsConfig = PairsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    batch_size: int = Field(64, ge=1)
    shuffle_window: int | None = Field(None, ge=1)
    accumulate: int = Field(1, ge=1)
    clip_norm: float = Field(0.0, ge=0)
    precision: Annotated[PrecisionName, one_of(PrecisionName)] = "fp32"
    compile: bool = False
    ema_decay: float | None = Field(None, gt=0, lt=1)
    strategy: Annotated[StrategyName, one_of(StrategyName)] = "ddp"
    fsdp: FsdpConfig = FsdpConfig()
    hsdp: HsdpConfig = HsdpConfig()
    tensor: TensorConfig = TensorConfig()
    parameter_server: ParameterServerConfig = ParameterServerConfig()
    diloco: DilocoConfig = DilocoConfig()
    masking: MaskingConfig = MaskingConfig()
    max_epochs: int = Field(40, ge=1, le=100_000)
    target: float | None = None
    stop: StopConfig = StopConfig()
    seed: int = Field(0, ge=0, lt=2**31)
    ranks: int = Field(2, ge=1, le=64)
    nodes: Annotated[str, BeforeValidator(_in_quotes)] = Field("1", pattern=r"^[1-9]\d{0,3}(:[1-9]\d{0,3})?$")
    launcher: Annotated[LauncherName, one_of(LauncherName)] = "torch"
    device: Annotated[DeviceName, one_of(DeviceName)] = "auto"
    ray: RayConfig = RayConfig()
    rendezvous: str = Field("", pattern=r"^$|^[^:\s]+:\d{1,5}$")
    checkpoint_every_epochs: int = Field(1, ge=1)
    checkpoint: CheckpointConfig = CheckpointConfig()
    max_restarts: int = Field(6, ge=0, le=100)
    silence_seconds: float = Field(120, gt=0)
    max_shard_bytes: int = Field(MAX_SHARD_BYTES, ge=1000)

    @model_validator(mode="after")
    def _combination_works(self) -> Self:
        if self.strategy in SHARDED and self.optimizer.name == "muon":
            raise ValueError(f"optimizer muon needs whole matrices, {self.strategy} shards them: take adamw, or ddp")
        if self.strategy != "ddp" and self.precision == "fp16":
            raise ValueError(f"precision fp16 needs one loss scale, and {self.strategy} has none: take bf16, or ddp")
        if self.strategy == "diloco" and self.ema_decay:
            raise ValueError("ema_decay averages over steps, diloco over ranks: leave it out, or take ddp")
        if self.distill.hidden:
            self._require_layers()
        if self.init.checkpoint and self.stop.max_steps == 0:
            raise ValueError("stop.max_steps 0 publishes a network as it comes, init.checkpoint is for training on")
        self._require_groups()
        self._require_meeting_point()
        self._require_room_on_ray()
        if isinstance(self.model, RecommenderConfig) and self.model.sparse:
            self._require_sparse()
        if self.optimizer.name != "gd" and self.batch_size < self.num_readers:
            raise ValueError(
                f"batch_size {self.batch_size} is smaller than ranks {self.most_ranks}: some would have no row"
            )
        return self

    def _require_layers(self) -> None:
        """Hidden states are looked at in the midst of a network: what does not leave them there."""
        if self.strategy not in ("ddp", "fsdp", "hsdp"):
            raise ValueError(
                f"distill.hidden is for ddp, fsdp and hsdp, not for {self.strategy}: take one, or leave it out"
            )
        if self.compile:
            raise ValueError("distill.hidden looks into layers, which compile melts together: choose one")
        if self.precision == "fp16":
            raise ValueError("distill.hidden has no loss scale, which precision fp16 needs: take bf16")

    def _require_sparse(self) -> None:
        """Gradients of some rows of a table: what cannot take them."""
        whole = "; or model.sparse: false"
        if self.strategy in SHARDED:
            raise ValueError(f"model.sparse needs whole tables, {self.strategy} shards them: take ddp{whole}")
        own = self.optimizer
        if own.name not in ("adam", "adagrad", "sgd") or own.momentum:
            named = own.name + (" with momentum" if own.momentum else "")
            raise ValueError(f"model.sparse goes with optimizer adam, adagrad or plain sgd, not with {named}{whole}")
        if own.weight_decay:
            raise ValueError(f"weight_decay moves every row of a table at each step, model.sparse some: 0{whole}")
        if self.clip_norm:
            raise ValueError(f"clip_norm needs whole gradients, model.sparse gives those of some rows: 0{whole}")
        if self.init.keep_zeros:
            raise ValueError(f"init.keep_zeros needs whole gradients, model.sparse gives those of some rows{whole}")

    def _require_groups(self) -> None:
        """Ranks must fall into the groups that the strategy needs."""
        servers = self.parameter_server.servers
        fewest = self.ranks * self.node_range[0]
        if self.strategy == "parameter_server" and servers >= fewest:
            raise ValueError(
                f"parameter_server.servers {servers} of ranks {fewest} leave no worker: take more ranks or fewer servers"
            )
        name = {"hsdp": "hsdp.shards", "tensor": "tensor.size"}.get(self.strategy)
        size = self.hsdp.shards if self.strategy == "hsdp" else self.tensor.size
        if name and self.ranks % size:
            nearest_below = self.ranks // size * size
            right = f"{nearest_below} or {nearest_below + size}" if nearest_below else str(size)
            raise ValueError(f"ranks {self.ranks} cannot be split into groups of {name} {size}: take ranks {right}")

    def _require_meeting_point(self) -> None:
        least, most = self.node_range
        if least > most:
            raise ValueError(f"nodes {self.nodes} is least:most, and {least} is more than {most}: write {most}:{least}")
        if self.meets and not self.rendezvous:
            raise ValueError(
                f"nodes {self.nodes} need train.rendezvous: host:port of the machine that runs the flow, as the others"
                " reach it"
            )

    def _require_room_on_ray(self) -> None:
        """Ray hides what it has not set aside."""
        if self.launcher != "ray" or self.device == "auto":
            return
        if self.device == "cpu" and self.ray.gpus:
            raise ValueError(f"device cpu leaves the GPU idle that ray.gpus {self.ray.gpus} sets aside: ray.gpus 0")
        if self.device != "cpu" and not self.ray.gpus:
            raise ValueError(f"device {self.device} needs one that Ray sets aside for each rank: ray.gpus 1")

    @property
    def num_readers(self) -> int:
        """Ranks, or groups of them, that share the rows of a step at most."""
        if self.strategy == "parameter_server":
            return (
                1 if self.parameter_server.mode == "asynchronous" else self.most_ranks - self.parameter_server.servers
            )
        return self.most_ranks // self.tensor.size if self.strategy == "tensor" else self.most_ranks

    @property
    def node_range(self) -> tuple[int, int]:
        """Least and most nodes."""
        least, _, most = self.nodes.partition(":")
        return int(least), int(most or least)

    @property
    def meets(self) -> bool:
        """Whether machines find each other by themselves, at ``rendezvous``."""
        return self.launcher == "torch" and self.node_range[1] > 1

    @property
    def most_ranks(self) -> int:
        """Over all nodes, if all are there."""
        return self.ranks * self.node_range[1]

    def identity(self, unused: Collection[str] = ()) -> dict[str, Any]:
        """The part of the config that the trained weights depend on, without keys that say nothing this time."""
        other_strategies = OF_ONE_STRATEGY - {self.strategy}
        unsaid = {"masking"} if self.masking == MaskingConfig() else set()  # most trainings hide nothing
        unsaid |= {"max_shard_bytes"} if self.max_shard_bytes == MAX_SHARD_BYTES else set()
        left_out = dict.fromkeys({*OPERATIONAL, *other_strategies, *unsaid, *unused}, True)
        return self.model_dump(mode="json", exclude={**NAMES, **left_out})
