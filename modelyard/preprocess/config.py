"""What a user says about a data set."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.preprocess.formats import ReadConfig
from modelyard.preprocess.labels import LabelConfig
from modelyard.task_kinds import LANGUAGE_TASKS, TaskName
from modelyard.token_labels import Subwords
from modelyard.transform import SelectConfig, TransformConfig

EVERY = "*"
Bound = float | None  # None: open
Kind = Literal["number", "integer", "boolean", "category", "date", "text"]
NullPolicy = Literal["reject", "drop", "value", "mean", "median", "most_frequent"]
TextStep = Literal["nfc", "control", "whitespace", "lower"]
FITTED_POLICIES = ("mean", "median", "most_frequent")


class SplitConfig(Frozen):
    """Which rows train, choose (validation) and judge (test).

    ``hash``: each row, or each identity, is hashed; a small set meets the fractions only roughly. ``stratified``:
    each class meets them to within a row or two, in order of arrival. ``time``: by two dates. With each of them a row
    stays where it is while data is added (for ``stratified``: added behind what was there).
    """

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    method: Literal["hash", "stratified", "time"] = "hash"
    time_column: str | None = Field(None, description="for time: the column of dates")
    validation_from: datetime | None = Field(None, description="for time: rows from here on are not for training")
    test_from: datetime | None = Field(None, description="for time: rows from here on are for testing")
    disjoint: list[str] = Field(
        default_factory=list, description="columns of which no value may occur in two splits; one that does is an error"
    )

    @model_validator(mode="after")
    def _sum_is_one(self) -> SplitConfig:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"the fractions of train, validation and test must sum to 1, not {total:g}")
        return self

    @model_validator(mode="after")
    def _time_is_whole(self) -> SplitConfig:
        given = (self.time_column, self.validation_from, self.test_from)
        if self.method == "time":
            if None in given:
                raise ValueError("split.method time needs time_column, validation_from and test_from")
            if not self.validation_from < self.test_from:  # ty: ignore[unsupported-operator]  (not None: checked above)
                raise ValueError("split.validation_from must lie before split.test_from")
        elif any(value is not None for value in given):
            raise ValueError("time_column, validation_from and test_from belong to split.method time")
        return self


class OutlierConfig(Frozen):
    """Values far from the rest of the training split.

    ``zscore``: more than ``limit`` deviations from the mean. ``iqr``: more than ``limit`` interquartile ranges below
    the first or above the third quartile (Tukey, 1977, takes 1.5). ``clip`` moves them to the bound instead.
    """

    method: Literal["zscore", "iqr"] = "iqr"
    limit: float = Field(3.0, gt=0)
    action: Literal["reject", "clip"] = "reject"


class ColumnConfig(Frozen):
    """What one column must be, and what becomes of values that are not."""

    type: Kind | None = Field(None, description="none: from the first rows")
    range: tuple[Bound, Bound] | None = Field(None, description="allowed numbers, both ends included")
    earliest: datetime | None = Field(None, description="dates before are refused")
    latest: datetime | None = Field(None, description="dates after are refused")
    values: list[str | int] | None = Field(None, min_length=1, description="values that may occur")
    nulls: NullPolicy = Field(
        "reject", description="reject: into the quarantine; drop: leave the row out; value: fill with `fill`; or fill"
        " with the mean, median or most_frequent value of the training split"
    )  # fmt: skip
    fill: float | str | None = Field(None, description="for nulls: value")
    unique: bool = Field(False, description="later rows with a value that occurred are refused")
    outliers: OutlierConfig | None = None
    text: list[TextStep] = Field(
        default_factory=list,
        description="nfc: one spelling of each character; control: remove control characters; whitespace: trim, and one"
        " space for each run; lower",
    )
    sensitive: Literal["drop", "mask", "hash"] | None = Field(
        None,
        description="done before anything else sees the column; hash needs MODELYARD_SENSITIVE_KEY in the environment",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> ColumnConfig:
        _check_order("range", *(self.range or (None, None)))
        _check_order("earliest", self.earliest, self.latest)
        if (self.nulls == "value") != (self.fill is not None):
            raise ValueError("`fill` and `nulls: value` go together")
        if self.type == "text" and (self.nulls not in ("reject", "drop") or self.values):
            raise ValueError("a text is neither filled in nor one of some values: nulls may be reject or drop")
        if self.type in ("category", "date", "text") and (
            self.range or self.outliers or self.nulls in ("mean", "median")
        ):
            raise ValueError(f"range, outliers, mean and median are for numbers, not for a {self.type}")
        if self.sensitive and (self.type not in (None, "category") or self.range or self.values or self.outliers):
            raise ValueError("a sensitive column becomes a text: no other type than category, no range, no values")
        if self.sensitive == "mask" and self.unique:
            raise ValueError("a masked column cannot be unique: all its values become one")
        return self


class WorkersConfig(Frozen):
    """Who prepares the partitions. What comes out is the same.

    Attributes:
        kind: ``inline``: one after the other, in the process that asks; ``processes``: ``count`` processes on this machine;
            ``dask``: a Dask cluster.
        count: at most so many at a time; no more than have ``memory_bytes`` each of the memory that is free. They share the
            cores. Of a cluster elsewhere its own size counts.
        memory_bytes: what a worker may need; a local Dask worker that takes more is started anew.
        address: of the cluster's scheduler, ``tcp://host:8786``; empty: one on this machine, for the run.
        partition_seconds: a worker that takes longer for one partition is given up, and another one tries.
    """

    kind: Literal["inline", "processes", "dask"] = "inline"
    count: int = Field(2, ge=1, le=1024)
    memory_bytes: int = Field(2**30, ge=2**29)
    address: str = Field("", pattern=r"^$|^(tcp|tls|ucx|ws|wss)://.+:\d+$")
    partition_seconds: float = Field(3600, gt=0)

    @model_validator(mode="after")
    def _address_is_dasks(self) -> WorkersConfig:
        if self.address and self.kind != "dask":
            raise ValueError("workers.address is that of a Dask scheduler: kind must be dask")
        return self


class NearConfig(Frozen):
    """Texts that are nearly the same: overlapping shingles, by MinHash signatures.

    Attributes:
        column: of texts; for language_modelling the target unless said otherwise.
        threshold: share of shingles (Jaccard similarity) from which on two texts are nearly the same; estimated from 128
            numbers a text, so within some 0.03 of it either may happen.
        shingle_bytes: window of UTF-8 that slides over a text; shorter ones see likeness in the same words, longer ones in
            the same phrases.
        action: ``drop``: of rows that are nearly the same the earliest stays, the others count as duplicates; ``check``:
            all stay, and two of them in different splits end the run.
    """

    column: str = ""
    threshold: float = Field(0.8, ge=0.5, le=1)
    shingle_bytes: int = Field(9, ge=3, le=16)
    action: Literal["drop", "check"] = "drop"


class SpanConfig(Frozen):
    """How the target of token classification is written, and which tokens carry its tags.

    Attributes:
        form: ``spans``: each row has a text, and a list of objects with ``start``, ``end`` (characters from 0; the end is the
            first one behind) and ``label``; ``tags``: each row has a list of words, and a list of as many BIO tags. Lists
            are lists in Parquet, Arrow and JSON Lines, and JSON in CSV.
        subwords: ``first``: of a word that the tokenizer cuts up its first token carries the tag, and the others are not
            looked at; ``every``: all of them, so that a span may end inside a word.
    """

    form: Literal["spans", "tags"] = "spans"
    subwords: Subwords = "first"


class PreprocessConfig(Frozen):
    """How rows become a data set.

    Number features are stored as float64, categories and identity columns as text, dates as time stamps, the target
    of a regression as float64, else as int64 or text: text only if most labels of the first rows (or any of ``target_values``) are not integers. So
    the same rows in CSV and in Parquet make the same data set.
    """

    target: str = Field(
        min_length=1,
        description="column to predict; for language_modelling and masked_language_modelling the texts; for embedding"
        " the text that belongs to the feature's; for retrieval the item of a row; for token_classification the spans",
    )
    task: TaskName = "classification"
    similarity: str = Field(
        "",
        description="for embedding: the column of numbers that says how alike the two texts of a row are; empty: they"
        " belong together",
    )
    items: list[str] = Field(
        default_factory=list,
        description="for retrieval: the features that tell about the item, beside the target itself; the others tell"
        " about the query",
    )
    weight: str = Field(
        "", description="for retrieval: the column of numbers that says how much a row counts; empty: each the same"
    )
    features: Literal["*"] | list[str] = Field(
        EVERY,
        description="input columns in the network's order; *: every column that holds numbers or whose type `columns`"
        " says, but target and identity",
    )
    identity: list[str] = Field(
        default_factory=list,
        description="columns that say which rows belong together and so to the same split; empty: the whole row",
    )
    keep: list[str] = Field(default_factory=list, description="columns that go along with the rows, as text or dates")
    columns: dict[str, ColumnConfig] = Field(default_factory=dict, description="rules for single columns")
    ranges: dict[str, tuple[Bound, Bound]] = Field(
        default_factory=dict, description="allowed values (both ends included) per feature; *: of every other one"
    )
    target_values: list[str | int] | None = Field(
        None, min_length=2, description="labels that may occur; rows with others are quarantined"
    )
    near_duplicates: NearConfig | None = Field(None, description="what becomes of texts that are nearly the same")
    split: SplitConfig = SplitConfig()
    nulls: NullPolicy = Field("reject", description="what becomes of a null in a feature without a rule of its own")
    max_rejected_fraction: float = Field(0.05, ge=0, le=1, description="more quarantined rows than this: an error")
    shard_rows: int = Field(100_000, ge=1, description="rows per file of the data set, at most")
    partition_bytes: int = Field(
        8 * 2**20, ge=1, description="files are processed and kept together until they have about so many bytes"
    )
    workers: WorkersConfig = WorkersConfig()
    read: ReadConfig = ReadConfig()
    steps: list[str] = Field(
        default_factory=list,
        description="module:function of yours, one after the other, before anything is checked: a pandas batch of a"
        " file's raw rows to one with the same index; rows it leaves out are refused rows, columns may come and go",
    )
    label: LabelConfig = LabelConfig()
    spans: SpanConfig = SpanConfig()
    transform: TransformConfig = TransformConfig()

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> PreprocessConfig:
        for column, (low, high) in self.ranges.items():
            _check_order(f"ranges.{column}", low, high)
        if self.nulls == "value":
            raise ValueError("nulls: value needs a value of its own for each column: write it under `columns`")
        return self

    @model_validator(mode="after")
    def _regression_has_no_classes(self) -> PreprocessConfig:
        if self.task != "regression":
            return self
        if self.target_values is not None:
            raise ValueError("target_values lists classes; a regression predicts numbers")
        if self.label.suspects:
            raise ValueError("label.suspects looks at classes; a regression has none")
        if self.split.method == "stratified":
            raise ValueError("split.method stratified keeps the shares of classes; a regression has none")
        if self.transform.select.mutual_information is not None:
            raise ValueError("transform.select.mutual_information is that with classes; a regression has none")
        return self

    @model_validator(mode="after")
    def _language_has_only_text(self) -> PreprocessConfig:
        if self.task not in LANGUAGE_TASKS:
            return self
        if self.features != EVERY or self.target_values is not None:
            raise ValueError(f"{self.task} learns from the text in `target` alone: no features, no target_values")
        if self.label.suspects:
            raise ValueError("label.suspects looks at classes; a text has none")
        if self.split.method == "stratified":
            raise ValueError("split.method stratified keeps the shares of classes; a text has none")
        return self

    @model_validator(mode="after")
    def _embedding_has_pairs(self) -> PreprocessConfig:
        if self.task != "embedding":
            if self.similarity:
                raise ValueError("similarity belongs to task embedding")
            return self
        if self.text_column is None:
            raise ValueError("embedding reads a column of type text: name it in features, and its type under `columns`")
        if self.target_values is not None or self.label.suspects or self.split.method == "stratified":
            raise ValueError(
                "target_values, label.suspects and split.method stratified look at classes; a text has none"
            )
        return self

    @model_validator(mode="after")
    def _spans_are_in_a_text(self) -> PreprocessConfig:
        if self.task != "token_classification":
            if self.spans != SpanConfig():
                raise ValueError("spans belongs to task token_classification")
            return self
        if self.text_column is None:
            raise ValueError(
                "token_classification reads a column of type text: name it in features, and its type under `columns`"
            )
        if self.label != LabelConfig() or self.split.method == "stratified" or self.target_values is not None:
            raise ValueError(
                "label, target_values and split.method stratified look at one label a row, and here a row has any number"
                f" of spans; columns.{self.target}.values lists the labels that may occur"
            )
        rule = self.columns.get(self.target, ColumnConfig())
        if rule.text or rule.type or rule.range or rule.unique:
            raise ValueError(f"columns.{self.target}: of spans, only values and nulls can be said")
        return self

    @model_validator(mode="after")
    def _retrieval_has_two_sides(self) -> PreprocessConfig:
        if self.task != "retrieval":
            if self.items or self.weight:
                raise ValueError("items and weight belong to task retrieval")
            return self
        strangers = [name for name in self.items if name not in self.features]
        if self.features == EVERY or strangers:
            raise ValueError(
                "retrieval needs its columns named: all of them in features, and those that tell about the item in items"
                + (f" too; {strangers[0]!r} is in items alone" if strangers and self.features != EVERY else "")
            )
        if not set(self.features) - set(self.items):
            raise ValueError("retrieval needs features that tell about the query, beside those in items")
        if self.text_column is not None:
            raise ValueError("retrieval reads categories, numbers and dates; for texts take task embedding")
        if self.label.suspects or self.split.method == "stratified":
            raise ValueError("label.suspects and split.method stratified look at classes; a catalogue has none")
        if self.transform.components is not None or self.transform.select != SelectConfig():
            raise ValueError("components and select look at numbers; retrieval learns a vector for each category")
        return self

    @model_validator(mode="after")
    def _text_stands_alone(self) -> PreprocessConfig:
        if self.task == "masked_language_modelling":
            return self._masked_texts_have_a_tokenizer()
        texts = [name for name, rule in self.columns.items() if rule.type == "text"]
        if not texts:
            if self.transform.text.source:
                raise ValueError("transform.text is for a column of type text: write it under `columns`")
            return self
        if self.task == "language_modelling" or self.features != texts:
            raise ValueError(
                f"a column of type text is read by a network that reads nothing else: features: [{texts[0]}]"
            )
        if not self.transform.text.source:
            raise ValueError(
                "a column of type text needs transform.text.source: the folder with its network's tokenizer"
            )
        if self.label.suspects or self.transform.components is not None or self.transform.select != SelectConfig():
            raise ValueError("label.suspects, components and select look at numbers; a text has none")
        return self

    def _masked_texts_have_a_tokenizer(self) -> PreprocessConfig:
        if not self.transform.text.source:
            raise ValueError(
                "masked_language_modelling needs transform.text.source: the folder with a network's tokenizer"
            )
        if any(rule.type == "text" and name != self.target for name, rule in self.columns.items()):
            raise ValueError("masked_language_modelling reads the texts in `target`, and no other column of type text")
        return self

    @model_validator(mode="after")
    def _columns_have_one_role(self) -> PreprocessConfig:
        if self.target in self.features or self.target in self.identity:
            raise ValueError(f"{self.target!r} is the target; it cannot be a feature or part of the identity too")
        if isinstance(self.features, list) and not self.features:
            raise ValueError("features: name at least one column, or * for all numeric ones")
        if len(set(self.features)) != len(self.features):
            raise ValueError("features: a column is named twice")
        if self.split.method == "stratified" and self.identity:
            raise ValueError("split.method stratified deals with single rows; identity keeps rows together: choose one")
        return self

    @model_validator(mode="after")
    def _sensitive_columns_are_free(self) -> PreprocessConfig:
        dropped = [name for name, rule in self.columns.items() if rule.sensitive == "drop"]
        for name in dropped:
            if name in self.named:
                raise ValueError(f"columns.{name}: a column that is dropped cannot be used")
        target = self.columns.get(self.target)
        if target and (target.sensitive or target.outliers or target.nulls not in ("reject", "drop")):
            raise ValueError(f"columns.{self.target}: the target is neither protected, filled nor clipped")
        return self

    @model_validator(mode="before")
    @classmethod
    def _near_texts_are_the_target(cls, said: Any) -> Any:
        """Where nothing is said: those that a language model learns."""
        near = said.get("near_duplicates") if isinstance(said, dict) else None
        if isinstance(near, dict) and not near.get("column") and said.get("task") in LANGUAGE_TASKS:
            return {**said, "near_duplicates": {**near, "column": said.get("target", "")}}
        return said

    @model_validator(mode="after")
    def _near_texts_can_be_read(self) -> PreprocessConfig:
        if self.near_duplicates is None:
            return self
        name = self.near_duplicates.column
        if not name:
            raise ValueError("near_duplicates: say the column of texts")
        rule = self.columns.get(name, ColumnConfig())
        if rule.sensitive or rule.type not in (None, "category"):
            raise ValueError(f"near_duplicates: {name!r} must be text that is neither protected nor of another type")
        return self

    def decisive(self) -> dict[str, Any]:
        """The part of the config that the data set depends on."""
        return self.model_dump(mode="json", exclude={"workers"})

    @property
    def text_column(self) -> str | None:
        """The column that becomes tokens of a network that others trained, where there is one."""
        if self.task == "masked_language_modelling":
            return self.target
        return next((name for name, rule in self.columns.items() if rule.type == "text"), None)

    @property
    def makes_columns(self) -> bool:
        """Whether a file need not have all the columns that the data set has."""
        return bool(self.steps) or self.label.makes_column

    @property
    def functions(self) -> list[str]:
        """The user's own code."""
        return [*self.steps, *self.label.functions]

    @property
    def named(self) -> list[str]:
        """Columns that must be there, each once."""
        features = [] if self.features == EVERY else list(self.features)
        others = [name for name in (self.split.time_column, self.similarity, self.weight) if name]
        near = [self.near_duplicates.column] if self.near_duplicates else []
        keys = [*self.identity, *self.split.disjoint, *others, *self.keep, *near]
        return list(dict.fromkeys([*features, self.target, *keys]))


def _check_order(field: str, low: float | datetime | None, high: float | datetime | None) -> None:
    if low is not None and high is not None and not low <= high:  # ty: ignore[unsupported-operator]  (both of one type)
        raise ValueError(f"{field}: {low} lies above {high}")
