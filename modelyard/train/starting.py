"""Other models that a training begins from or learns from: what must be known of them before a rank is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import ConfigError
from modelyard.models.config import MODEL_FILE, HuggingFaceConfig, ModelSpec
from modelyard.task_kinds import Target
from modelyard.train.config import TrainConfig
from modelyard.transform import FittedTransform, TextTransform
from modelyard.transform.tokens import TokenTransform

Transform = FittedTransform | TextTransform | TokenTransform
TOKENISED = (TextTransform, TokenTransform)
INIT_FIELD, TEACHER_FIELD = "train.init.model", "train.distill.teacher"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A trained model that another training needs.

    Attributes:
        field: the preset key that names it, for sentences.
    """

    field: str
    ref: ArtifactRef
    spec: ModelSpec
    transform: Transform
    target: Target

    @classmethod
    def read(cls, catalog: Catalog, ref: ArtifactRef, field: str) -> Parent:
        """Everything but the weights.

        Raises:
            ConfigError: the artifact is no trained model.
            DigestMismatch: one of its files is not what was committed.
        """
        if ref.kind != "model":
            raise ConfigError(field, f"{ref} is a {ref.kind}; name a trained model, or a package made from one")
        return cls(
            field=field,
            ref=ref,
            spec=ModelSpec.model_validate_json(catalog.read(ref, MODEL_FILE)),
            transform=read_transform(catalog.read(ref, TRANSFORM_FILE)),
            target=Target.model_validate_json(catalog.read(ref, TARGET_FILE)),
        )

    @property
    def factories(self) -> list[str]:
        """The user's code that its network is built by."""
        return self.spec.factories

    def require_fit(self, transform: Transform, target: Target) -> None:
        """Refuse a model that answers another question than a data set asks, or takes other inputs.

        Raises:
            ConfigError: names both sides.
        """
        if self.target.task != target.task:
            self._refuse(f"is for {self.target.task}, the data set for {target.task}")
        if self.target.classes != target.classes:
            self._refuse(f"has other classes: {_difference(self.target.classes, target.classes)}")
        if self.transform.columns != transform.columns:
            self._refuse(f"takes other columns: {_difference(self.transform.columns, transform.columns)}")
        own, its = (one.items.columns if one.items else [] for one in (target, self.target))
        if own != its:
            self._refuse(f"takes other columns of items: {_difference(its, own)}")
        if isinstance(self.transform, TOKENISED) or isinstance(transform, TOKENISED):
            self._require_tokenizer(transform)
            self._require_positions(transform)
        elif self.transform.width != transform.width:
            self._refuse(
                f"takes {self.transform.width} inputs, this data set's columns become {transform.width}; train it anew"
                " on this data set first, or give both the same preprocess.transform"
            )

    def _require_tokenizer(self, transform: Transform) -> None:
        own, its = (getattr(one, "tokenizer_sha256", "") for one in (transform, self.transform))
        if own != its:
            self._refuse(
                f"has another tokenizer ({its[:12]}) than the data set ({own[:12]}): its numbers would mean other words"
            )

    def _require_positions(self, transform: Transform) -> None:
        """A network of `transformers` may know no more than so many places in a text."""
        network = self.spec.network
        places = network.config.get("max_position_embeddings") if isinstance(network, HuggingFaceConfig) else None
        if isinstance(transform, TextTransform) and isinstance(places, int) and places < transform.max_length:
            self._refuse(
                f"reads {places} tokens of a text, the data set has up to {transform.max_length}: a smaller"
                " preprocess.transform.text.max_length"
            )

    def _refuse(self, problem: str) -> None:
        raise ConfigError(self.field, f"{self.ref} {problem}")


@dataclass(frozen=True, kw_only=True)
class Parents:
    """The model whose weights a training starts with, and the one whose answers it imitates; None: none."""

    init: Parent | None = None
    teacher: Parent | None = None

    @classmethod
    def read(
        cls, catalog: Catalog, config: TrainConfig, init: ArtifactRef | None, teacher: ArtifactRef | None
    ) -> Parents:
        """Both, as far as they are given.

        Raises:
            ConfigError: one is no trained model, or the config needs one that is not given.
        """
        if config.init.checkpoint and init:
            raise ConfigError(
                "train.init.checkpoint", f"{init} already says which weights to begin with: name one or the other"
            )
        if config.init.keep_zeros and init is None and not config.init.checkpoint:
            raise ConfigError(
                "train.init.keep_zeros", f"random weights have no zeros to keep; name a model in {INIT_FIELD}"
            )
        return cls(
            init=Parent.read(catalog, init, INIT_FIELD) if init else None,
            teacher=Parent.read(catalog, teacher, TEACHER_FIELD) if teacher else None,
        )

    @property
    def all(self) -> list[Parent]:
        return [parent for parent in (self.init, self.teacher) if parent]

    @property
    def inputs(self) -> dict[str, ArtifactRef]:
        """Role -> artifact, as a manifest has it."""
        roles = {"init": self.init, "teacher": self.teacher}
        return {role: parent.ref for role, parent in roles.items() if parent}

    @property
    def unused(self) -> set[str]:
        """Keys of the config that say nothing about this training: a starting model brings its own network."""
        return ({"model"} if self.init else {"init"}) | (set() if self.teacher else {"distill"})


def read_transform(body: bytes) -> Transform:
    """A fitted transform of any sort."""
    return TypeAdapter(Transform).validate_json(body)


def trained_model(catalog: Catalog, ref: ArtifactRef) -> ArtifactRef:
    """The trained model behind an artifact: itself, or what a package (a registered version, say) was made from."""
    if ref.kind != "compressed":
        return ref
    made_from = catalog.manifest(ref).content.inputs.get("model")
    return catalog.resolve(made_from) if made_from else ref


def _difference(its: Sequence[object], own: Sequence[object]) -> str:
    """What two lists of names do not share, a few of each."""
    gone, new = ([str(name) for name in one if name not in other][:5] for one, other in ((its, own), (own, its)))
    if not gone and not new:
        return "the same in another order"
    return f"its {', '.join(gone) or '(none)'} against the data set's {', '.join(new) or '(none)'}"
