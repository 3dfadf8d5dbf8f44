"""How to train. Torch is not imported here, so that forms and presets can be checked without it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.masking import MaskingConfig
from modelyard.models.config import MlpConfig, ModelConfig, RecommenderConfig
from modelyard.nearest import one_of
from modelyard.train.strategy_config import (
    SHARDED,
    DilocoConfig,
    FsdpConfig,
    HsdpConfig,
    LauncherName,
    ParameterServerConfig,
    RayConfig,
    StrategyName,
    TensorConfig,
)

OptimizerName = Literal["gd", "sgd", "adagrad", "rmsprop", "adam", "adamw", "muon"]
ScheduleName = Literal["constant", "cosine", "linear", "wsd", "plateau"]
HiddenLossName = Literal["squared_error", "cosine"]
PrecisionName = Literal["fp32", "bf16", "fp16"]


class OptimizerConfig(Frozen):
    """An optimizer by name.

    Attributes:
        name: ``gd`` steps once an epoch on the gradient over all training rows (``batch_size`` then only bounds what is
            in memory at once); ``muon`` orthogonalises the update of hidden weight matrices and leaves the rest to adamw.
        learning_rate: at the top of the schedule.
        weight_decay: decoupled for adamw and muon, else added to the gradient.
        momentum: of gd, sgd and rmsprop; muon keeps 0.95.
        nesterov: of sgd, and needs its momentum.
    """

    name: Annotated[OptimizerName, one_of(OptimizerName)] = "adam"
    learning_rate: float = Field(1e-3, gt=0, le=100)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov is sgd's, with a momentum above 0")
        return self


class ScheduleConfig(Frozen):
    """How the learning rate moves.

    Attributes:
        name: ``constant``; ``cosine`` and ``linear`` fall to ``final_fraction`` over the whole training; ``wsd`` stays and
            falls linearly over the last ``decay_fraction``; ``plateau`` is multiplied by ``plateau_factor`` after
            ``plateau_patience`` validations whose loss did not fall.
        warmup_steps: steps of linear rise before.
        total_steps: what "the whole training" is; None: the smallest of ``stop.max_steps``, ``stop.max_tokens`` and
            ``max_epochs``.
        final_fraction: of the learning rate, where it falls to, and below which ``plateau`` does not go.
    """

    name: Annotated[ScheduleName, one_of(ScheduleName)] = "constant"
    warmup_steps: int = Field(0, ge=0)
    total_steps: int | None = Field(None, ge=1)
    final_fraction: float = Field(0.0, ge=0, le=1)
    decay_fraction: float = Field(0.2, gt=0, le=1)
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    plateau_patience: int = Field(3, ge=1)


class StopConfig(Frozen):
    """When to end besides ``max_epochs`` and ``target``.

    Attributes:
        metric: the validation metric that ``target`` and ``patience`` look at and the best weights are chosen by; None:
            the task's headline.
        patience: validations in a row without a new best.
        max_steps: optimizer steps. 0: nothing is trained; a network that comes with weights is published as it is.
        max_tokens: that training has read, over all ranks; tokens that fill up a batch do not count.
        max_seconds: of training, over all resumes together. The one rule that does not repeat to the bit.
        diverged_above: a mean training loss above this counts as diverged, as a NaN does; None: only NaN and infinity.
    """

    metric: str | None = None
    patience: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    max_seconds: float | None = Field(None, gt=0)
    diverged_above: float | None = None


class CheckpointConfig(Frozen):
    """When to save besides every ``checkpoint_every_epochs`` epochs and at each new best, and what to keep.

    Attributes:
        every_steps, every_seconds: more often; None: no.
        keep_last: newest checkpoints that stay.
        keep_best: checkpoints with the best validation that stay as well; the artifact's weights come from the first.
        timeout_seconds: a save that takes longer is an error.
    """

    every_steps: int | None = Field(None, ge=1)
    every_seconds: float | None = Field(None, gt=0)
    keep_last: int = Field(2, ge=1)
    keep_best: int = Field(1, ge=1)
    timeout_seconds: float = Field(300, gt=0)


class LoraConfig(Frozen):
    """Low-rank adapters beside linear layers; the layers themselves stay as they are.

    Attributes:
        rank: of what is added to a layer's weights.
        alpha: what is added is scaled by alpha / rank.
        targets: ends of the names of the layers (``query``, ``layer.0.attention.self.value``); empty: every linear layer
            that is not new.
        dropout: of what an adapter reads.
    """

    rank: int = Field(8, ge=1, le=4096)
    alpha: int = Field(16, ge=1)
    targets: list[str] = Field(default_factory=list)
    dropout: float = Field(0.0, ge=0, lt=1)


class InitConfig(Frozen):
    """Which weights training begins with, and which of them it moves.

    Attributes:
        model: a trained model by digest, URI, ``model@alias`` or ``model/version``; its network is taken over with its
            shapes, whatever ``model`` says. Empty: random weights, by ``seed``.
        checkpoint: of another training of the same network, for its weights alone: the folder of its checkpoints (the
            newest counts) or one of them, ``s3://.../checkpoints/00000001-000000000240``.
        keep_zeros: weights (of two dimensions or more) that are zero in it stay zero.
        lora: train adapters, and whatever is new, instead of the weights.
        freeze: ends of the names of parts that are not trained (``embeddings``, ``layer.0``).
    """

    model: str = ""
    checkpoint: str = ""
    keep_zeros: bool = False
    lora: LoraConfig | None = None
    freeze: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _combination_works(self) -> Self:
        if self.checkpoint and not self.checkpoint.startswith("s3://"):
            raise ValueError(f"checkpoint {self.checkpoint!r} is no address of one: write s3://bucket/.../checkpoints")
        if self.checkpoint and self.model:
            raise ValueError("model and checkpoint both say which weights to begin with: choose one")
        if self.lora and self.keep_zeros:
            raise ValueError("keep_zeros holds weights at zero, and lora adds to them: choose one")
        return self

    @property
    def trains_a_part(self) -> bool:
        """Whether some weights stay as they are."""
        return self.lora is not None or bool(self.freeze)


class PairsConfig(Frozen):
    """How networks learn whose rows are pairs: a query and its item, or two texts that belong together.

    Attributes:
        temperature: similarities are divided by it; a smaller one looks at the hardest others more.
        correct_popularity: for retrieval: a frequent item stands among the others of a batch more often than a rare one;
            the logarithm of its frequency is taken off its similarity (Yi et al., RecSys 2019).
    """

    temperature: float = Field(0.05, gt=0, le=100)
    correct_popularity: bool = True


class HiddenConfig(Frozen):
    """Learning from what a teacher's layers say.

    Attributes:
        layers: so many pairs, evenly by depth; or names of parts of the network -> names of those of the teacher.
        loss: ``squared_error``, the mean over a state's numbers; ``cosine``, 1 less the cosine. Where widths differ, a
            linear projection of the network's states is learned along.
        weight: of this loss, which is added to the others.
    """

    layers: Annotated[int, Field(ge=1)] | dict[str, str] = 1
    loss: Annotated[HiddenLossName, one_of(HiddenLossName)] = "squared_error"
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _some_layer(self) -> Self:
        if not self.layers:
            raise ValueError("layers names none: a number, or {part of the network: part of the teacher}")
        return self


class DistillConfig(Frozen):
    """Learning from another model's answers.

    Attributes:
        teacher: a trained model of the same task, named as ``init.model`` is. Empty: labels alone.
        temperature: softens both models' probabilities; a regression has none.
        weight: of the loss against the teacher; the rest is that against the labels.
        hidden: learn from its layers as well; None: from its answers alone.
    """

    teacher: str = ""
    temperature: float = Field(2.0, gt=0, le=100)
    weight: float = Field(0.5, gt=0, le=1)
    hidden: HiddenConfig | None = None


# What only decides how the work is carried out, never what comes out of it.
OPERATIONAL = {
    "checkpoint_every_epochs",
    "checkpoint",
    "launcher",
    "ray",
    "rendezvous",
    "max_restarts",
    "silence_seconds",
}
# Sections that speak of the strategy of their name alone.
OF_ONE_STRATEGY = {"hsdp", "tensor", "parameter_server", "diloco"}
# Names of artifacts: what they stand for today is an input of the work, by its digest.
NAMES = {"init": {"model", "checkpoint"}, "distill": {"teacher"}, "model": {"source"}}


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
        rendezvous: for torch's launcher: ``host:port`` where nodes meet, an address of the one that runs the flow, free there; the others start
            ``python -m modelyard.train.launch <job>``.
        max_restarts: how often the launcher restarts the group after a lost rank.
        silence_seconds: a group that says nothing for so long is taken for hung, ended and tried again.
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
    nodes: str = Field("1", pattern=r"^[1-9]\d{0,3}(:[1-9]\d{0,3})?$")
    launcher: Annotated[LauncherName, one_of(LauncherName)] = "torch"
    ray: RayConfig = RayConfig()
    rendezvous: str = Field("", pattern=r"^$|^[^:\s]+:\d{1,5}$")
    checkpoint_every_epochs: int = Field(1, ge=1)
    checkpoint: CheckpointConfig = CheckpointConfig()
    max_restarts: int = Field(6, ge=0, le=100)
    silence_seconds: float = Field(120, gt=0)

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
        left_out = dict.fromkeys({*OPERATIONAL, *other_strategies, *unsaid, *unused}, True)
        return self.model_dump(mode="json", exclude={**NAMES, **left_out})
