"""What a user says about a data set."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.preprocess.formats import ReadConfig
from modelyard.preprocess.labels import LabelConfig
from modelyard.preprocess.sections import (
    Bound,
    ColumnConfig,
    NearConfig,
    NullPolicy,
    SpanConfig,
    SplitConfig,
    WorkersConfig,
    check_order,
)
from modelyard.task_kinds import LANGUAGE_TASKS, TaskName
from modelyard.transform import SelectConfig, TransformConfig

EVERY = "*"


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
            check_order(f"ranges.{column}", low, high)
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
