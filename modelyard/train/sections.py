"""Sections of the training's config: its course, what it begins with, and whom it learns from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.nearest import one_of

OptimizerName = Literal["gd", "sgd", "adagrad", "rmsprop", "adam", "adamw", "muon"]
ScheduleName = Literal["constant", "cosine", "linear", "wsd", "plateau"]
HiddenLossName = Literal["squared_error", "cosine"]


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

    @model_validator(mode="after")
    def _falls_after_it_rose(self) -> Self:
        if self.total_steps is not None and self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leave nothing of total_steps {self.total_steps}")
        return self


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
    diverged_above: float | None = Field(None, gt=0)


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
        temperature: softens both models' probabilities, of pairs those over the items of a step; a regression and a likeness
            have none.
        weight: of the loss against the teacher; the rest is that against the labels.
        hidden: learn from its layers as well; None: from its answers alone.
    """

    teacher: str = ""
    temperature: float = Field(2.0, gt=0, le=100)
    weight: float = Field(0.5, gt=0, le=1)
    hidden: HiddenConfig | None = None
