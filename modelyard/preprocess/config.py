"""What a user says about a data set."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.task_kinds import TaskName
from modelyard.transform import TransformConfig

EVERY = "*"
Bound = float | None  # None: open


class SplitFractions(Frozen):
    """Share of the rows in each split; they sum to 1. A small set meets them only roughly: each row is hashed."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_is_one(self) -> SplitFractions:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"the fractions of train, validation and test must sum to 1, not {total:g}")
        return self


class PreprocessConfig(Frozen):
    """How rows become a data set.

    Features are stored as float64, identity columns as text, the target of a regression as float64, else as int64 or
    text: text only if most labels of the first rows (or any of ``target_values``) are not integers. So the same rows in CSV and in Parquet make
    the same data set.
    """

    target: str = Field(min_length=1, description="column to predict")
    task: TaskName = "classification"
    features: Literal["*"] | list[str] = Field(
        EVERY, description="input columns in the network's order; *: every numeric column but target and identity"
    )
    identity: list[str] = Field(
        default_factory=list,
        description="columns that say which rows belong together and so to the same split; empty: the whole row",
    )
    ranges: dict[str, tuple[Bound, Bound]] = Field(
        default_factory=dict, description="allowed values (both ends included) per feature; *: of every other one"
    )
    target_values: list[str | int] | None = Field(
        None, min_length=2, description="labels that may occur; rows with others are quarantined"
    )
    split: SplitFractions = SplitFractions()
    nulls: Literal["reject"] = Field("reject", description="what becomes of a row with a null")
    max_rejected_fraction: float = Field(0.05, ge=0, le=1, description="more quarantined rows than this: an error")
    shard_rows: int = Field(100_000, ge=1, description="rows per file of the data set")
    transform: TransformConfig = TransformConfig()

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> PreprocessConfig:
        for column, (low, high) in self.ranges.items():
            if low is not None and high is not None and not low <= high:
                raise ValueError(f"ranges.{column}: {low:g} lies above {high:g}")
        return self

    @model_validator(mode="after")
    def _labels_belong_to_classes(self) -> PreprocessConfig:
        if self.task == "regression" and self.target_values is not None:
            raise ValueError("target_values lists classes; a regression predicts numbers")
        return self

    @model_validator(mode="after")
    def _columns_have_one_role(self) -> PreprocessConfig:
        if self.target in self.features or self.target in self.identity:
            raise ValueError(f"{self.target!r} is the target; it cannot be a feature or part of the identity too")
        if isinstance(self.features, list) and not self.features:
            raise ValueError("features: name at least one column, or * for all numeric ones")
        if len(set(self.features)) != len(self.features):
            raise ValueError("features: a column is named twice")
        return self
