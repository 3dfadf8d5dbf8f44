"""Task kinds: what a target looks like, how it is scored and what an answer means.

A kind owns the target schema, the name of the loss, the metrics and the decoding of outputs. Torch stays out, so
that the endpoint can decode without it; `modelyard.train` maps the loss's name to a function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import ConfigError, DataError
from modelyard.likeness import LikenessMetrics
from modelyard.metrics import (
    ClassificationMetrics,
    LanguageMetrics,
    MaskedMetrics,
    Metric,
    RegressionMetrics,
    softmax,
)
from modelyard.retrieval import RetrievalMetrics
from modelyard.span_metrics import SpanMetrics
from modelyard.token_labels import NO_TAG, labels_of, tags_for
from modelyard.transform.fitted import FittedTransform

if TYPE_CHECKING:
    import pandas as pd  # only where frames are; the endpoint decodes without it

TaskName = Literal[
    "classification",
    "regression",
    "language_modelling",
    "embedding",
    "retrieval",
    "token_classification",
    "masked_language_modelling",
]
NO_TOKEN = NO_TAG  # as a target: nothing is to be foretold here; torch's cross-entropy leaves it out
LANGUAGE_TASKS = ("language_modelling", "masked_language_modelling")  # neither compressed nor served


class Target(Frozen):
    """The fitted target schema.

    Attributes:
        classes: for classification, in the order of the network's outputs; for token classification the tags.
        mean, scale: for regression: the network predicts (value - mean) / scale, so that a rate that suits one data
            set suits another whatever its units.
        token_bytes: for language modelling: bytes of text that each token of the vocabulary stands for.
        similarity: for embedding: the column that says how alike the two texts of a row are; empty: they belong together.
        width: for embedding and retrieval: numbers of a vector, as the model makes them; 0 in a data set. For masked language
            modelling: how many tokens there are.
        items: for retrieval: from the columns of an item, ``column`` first, to what a network reads of it.
        weight: for retrieval: the column that says how much a row counts; empty: each the same.
    """

    task: TaskName = "classification"
    column: str
    classes: list[str | int] = Field(default_factory=list)
    mean: float = 0.0
    scale: float = Field(1.0, gt=0)
    token_bytes: list[int] = Field(default_factory=list)
    similarity: str = ""
    width: int = Field(0, ge=0)
    items: FittedTransform | None = None
    weight: str = ""

    @property
    def question(self) -> tuple[object, ...]:
        """What is asked of a model; two models with the same question can be compared."""
        return (self.task, self.column, tuple(self.classes), tuple(self.token_bytes))


class TaskKind(Protocol):
    """What the stages ask of a task kind."""

    loss: str
    headline: str

    def fit_target(self, column: str, values: set[Any], mean: float = 0.0, deviation: float = 1.0) -> Target:
        """The schema for what the training split holds: its classes, or the mean and deviation of its numbers."""
        ...

    def output_width(self, target: Target) -> int:
        """Number of outputs per row that the network must have."""
        ...

    def encode(self, target: Target, values: pd.Series) -> np.ndarray:
        """A target column (n,) as the loss wants it: int64 class numbers, or float32."""
        ...

    def metric(self, target: Target) -> Metric:
        """A fresh accumulator."""
        ...

    def decode(self, target: Target, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Raw outputs (n, k) as named answers of length n."""
        ...


class Classification:
    """One of a fixed set of classes per row."""

    loss = "cross_entropy"
    headline = "accuracy"

    def fit_target(self, column: str, values: set[Any], mean: float = 0.0, deviation: float = 1.0) -> Target:  # noqa: ARG002
        if len(values) < 2:
            raise DataError(
                f"target column {column!r} has {len(values)} distinct values; a classifier needs at least 2"
            )
        plain = [int(value) if isinstance(value, int | np.integer) else str(value) for value in values]
        return Target(column=column, classes=sorted(plain, key=lambda value: (isinstance(value, str), value)))

    def output_width(self, target: Target) -> int:
        return len(target.classes)

    def encode(self, target: Target, values: pd.Series) -> np.ndarray:
        numbers = {label: number for number, label in enumerate(target.classes)}
        encoded = values.map(numbers)
        if encoded.isna().any():
            strangers = sorted(map(str, values[encoded.isna()].unique()))[:5]
            raise DataError(f"target column {target.column!r} has classes unknown to training: {', '.join(strangers)}")
        return encoded.to_numpy(dtype=np.int64)

    def metric(self, target: Target) -> ClassificationMetrics:
        return ClassificationMetrics(len(target.classes))

    def decode(self, target: Target, outputs: np.ndarray) -> dict[str, np.ndarray]:
        probabilities = softmax(outputs.astype(np.float64))
        best = probabilities.argmax(axis=1)
        labels = np.array(target.classes, dtype=object if _mixed(target) else None)
        return {"label": labels[best], "probability": probabilities.max(axis=1)}


class Regression:
    """One number per row, standardised for the network and given back in its own units."""

    loss = "mean_squared_error"
    headline = "r2"

    def fit_target(self, column: str, values: set[Any], mean: float = 0.0, deviation: float = 1.0) -> Target:  # noqa: ARG002
        if not deviation > 0:
            raise DataError(f"target column {column!r} has the same value in every training row: nothing to predict")
        return Target(task="regression", column=column, mean=mean, scale=deviation)

    def output_width(self, target: Target) -> int:  # noqa: ARG002
        return 1

    def encode(self, target: Target, values: pd.Series) -> np.ndarray:
        numbers = values.to_numpy(dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise DataError(f"target column {target.column!r} has values that are no finite numbers")
        return ((numbers - target.mean) / target.scale).astype(np.float32)

    def metric(self, target: Target) -> RegressionMetrics:
        return RegressionMetrics(target.scale)

    def decode(self, target: Target, outputs: np.ndarray) -> dict[str, np.ndarray]:
        return {"value": outputs.astype(np.float64).reshape(-1) * target.scale + target.mean}


class LanguageModelling:
    """The next token of a text, from those before it. Rows are sequences of tokens, outputs (n, t, vocabulary)."""

    loss = "next_token"
    headline = "bits_per_byte"

    def fit_target(self, column: str, values: set[Any], mean: float = 0.0, deviation: float = 1.0) -> Target:  # noqa: ARG002
        raise ConfigError("preprocess.task", "the vocabulary of a language model comes from its tokenizer")

    def output_width(self, target: Target) -> int:
        return len(target.token_bytes)

    def encode(self, target: Target, values: pd.Series) -> np.ndarray:  # noqa: ARG002
        raise ConfigError("preprocess.task", "texts become tokens when they are packed (modelyard.token_data)")

    def metric(self, target: Target) -> LanguageMetrics:
        return LanguageMetrics(target.token_bytes)

    def decode(self, target: Target, outputs: np.ndarray) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The likeliest token after each sequence, and its probability."""
        probabilities = softmax(outputs[:, -1].astype(np.float64))
        return {"token": probabilities.argmax(axis=1), "probability": probabilities.max(axis=1)}


class Embedding:
    """A text as a vector, near to those of texts that mean the same. The target column holds the text that belongs to a row's,
    so rows can be judged only against each other."""

    loss = "contrastive"
    headline = "recall_at_10"

    def fit_target(self, column: str, values: set[Any], mean: float = 0.0, deviation: float = 1.0) -> Target:  # noqa: ARG002
        return Target(task="embedding", column=column)

    def output_width(self, target: Target) -> int:
        return target.width

    def encode(self, target: Target, values: pd.Series) -> np.ndarray:  # noqa: ARG002
        raise ConfigError("preprocess.task", "a text that belongs to another is no label: it is read as that one is")

    def metric(self, target: Target) -> Metric:
        return LikenessMetrics() if target.similarity else RetrievalMetrics()

    def decode(self, target: Target, outputs: np.ndarray) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The vectors themselves, (n, width)."""
        return {"embedding": outputs}


class TokenClassification:
    """A label for each token of a text, and so for spans of it. Outputs are (n, t, tags); the target column holds spans,
    which become tags where the text is at hand (`modelyard.targets`)."""

    loss = "token_tags"
    headline = "span_f1"

    def fit_target(self, column: str, values: set[Any], mean: float = 0.0, deviation: float = 1.0) -> Target:  # noqa: ARG002
        if not values:
            raise DataError(f"target column {column!r} has no span in any training row: nothing to learn")
        return Target(task="token_classification", column=column, classes=[*tags_for(sorted(map(str, values)))])

    def output_width(self, target: Target) -> int:
        return len(target.classes)

    def encode(self, target: Target, values: pd.Series) -> np.ndarray:  # noqa: ARG002
        raise ConfigError("preprocess.task", "spans become tags beside their texts (modelyard.targets)")

    def metric(self, target: Target) -> SpanMetrics:
        return SpanMetrics(len(labels_of(target.classes)))

    def decode(self, target: Target, outputs: np.ndarray) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The number of each token's likeliest tag, and its probability, (n, t) each."""
        probabilities = softmax(outputs.astype(np.float64))
        return {"tag": probabilities.argmax(axis=-1), "probability": probabilities.max(axis=-1)}


class MaskedLanguageModelling:
    """Tokens of a text that are hidden, from those around them (Devlin et al. 2018, arXiv 1810.04805). Outputs are
    (n, t, vocabulary)."""

    loss = "masked_token"
    headline = "perplexity"

    def fit_target(self, column: str, values: set[Any], mean: float = 0.0, deviation: float = 1.0) -> Target:  # noqa: ARG002
        raise ConfigError("preprocess.task", "the vocabulary of a language model comes from its tokenizer")

    def output_width(self, target: Target) -> int:
        return target.width

    def encode(self, target: Target, values: pd.Series) -> np.ndarray:  # noqa: ARG002
        raise ConfigError("preprocess.task", "which tokens are hidden is drawn as texts are read (modelyard.masking)")

    def metric(self, target: Target) -> MaskedMetrics:  # noqa: ARG002
        return MaskedMetrics()

    def decode(self, target: Target, outputs: np.ndarray) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The likeliest token in each place, and its probability, (n, t) each."""
        probabilities = softmax(outputs.astype(np.float64))
        return {"token": probabilities.argmax(axis=-1), "probability": probabilities.max(axis=-1)}


class Retrieval:
    """The items that belong to a query, out of a catalogue. The target column names the item of a row; both sides become
    vectors, and the nearest are the answer."""

    loss = "in_batch_softmax"
    headline = "recall_at_10"

    def fit_target(self, column: str, values: set[Any], mean: float = 0.0, deviation: float = 1.0) -> Target:  # noqa: ARG002
        return Target(task="retrieval", column=column)

    def output_width(self, target: Target) -> int:
        return target.width

    def encode(self, target: Target, values: pd.Series) -> np.ndarray:  # noqa: ARG002
        raise ConfigError("preprocess.task", "items are told apart by their catalogue (modelyard.retrieval)")

    def metric(self, target: Target) -> RetrievalMetrics:  # noqa: ARG002
        return RetrievalMetrics()

    def decode(self, target: Target, outputs: np.ndarray) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The vectors of the queries, (n, width)."""
        return {"embedding": outputs}


TASK_KINDS: dict[str, TaskKind] = {
    "classification": Classification(),
    "regression": Regression(),
    "language_modelling": LanguageModelling(),
    "embedding": Embedding(),
    "token_classification": TokenClassification(),
    "masked_language_modelling": MaskedLanguageModelling(),
    "retrieval": Retrieval(),
}


def loss_of(target: Target) -> str:
    """Name of the loss that a target is learned by."""
    return "cosine_error" if target.similarity else task_kind(target.task).loss


def headline_of(target: Target) -> str:
    """The metric that decides unless another is named."""
    return "spearman" if target.similarity else task_kind(target.task).headline


def refuse_language_models(stage: str, target: Target) -> None:
    """What a stage says that takes rows of numbers alone.

    Raises:
        ConfigError: the target is a text's next token, or one that is hidden.
    """
    if target.task in LANGUAGE_TASKS:
        raise ConfigError(
            "preprocess.task",
            f"{stage} does not take language models yet; a trained one is a folder that transformers loads, with its"
            " weights as safetensors",
        )


def task_kind(name: str) -> TaskKind:
    """The task kind of that name.

    Raises:
        ConfigError: there is none; lists those there are.
    """
    if name not in TASK_KINDS:
        raise ConfigError("task", f"{name!r} is not a task kind; known: {', '.join(TASK_KINDS)}")
    return TASK_KINDS[name]


def _mixed(target: Target) -> bool:
    return len({type(label) for label in target.classes}) > 1
