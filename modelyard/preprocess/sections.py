"""Sections of what a user says about a data set: columns, splits, workers, and what single tasks want to know."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.ray_cluster import ray_address
from modelyard.token_labels import Subwords

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
        check_order("range", *(self.range or (None, None)))
        check_order("earliest", self.earliest, self.latest)
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
            ``dask``, ``ray``: a cluster.
        count: at most so many at a time; no more than have ``memory_bytes`` each of the memory that is free. They share the
            cores. Of a cluster elsewhere its own size counts.
        memory_bytes: what a worker may need; a local Dask worker that takes more is started anew, and Ray sets so much aside
            for each partition.
        cpus: of a Ray cluster elsewhere, what is set aside for each partition, which uses as many threads.
        address: of the cluster: of Dask's scheduler, ``tcp://host:8786``; of Ray's head, ``host:6379``, or ``auto`` for the
            one that was started on this machine; empty: one on this machine, for the run.
        partition_seconds: a worker that takes longer for one partition is given up, and another one tries; a cluster that
            has prepared none for so long is given up.
    """

    kind: Literal["inline", "processes", "dask", "ray"] = "inline"
    count: int = Field(2, ge=1, le=1024)
    memory_bytes: int = Field(2**30, ge=2**29)
    cpus: int = Field(1, ge=1, le=1024)
    address: str = ""
    partition_seconds: float = Field(3600, gt=0)

    @model_validator(mode="after")
    def _address_is_of_its_kind(self) -> WorkersConfig:
        if not self.address:
            return self
        if self.kind == "ray":
            ray_address(self.address)
        elif self.kind != "dask":
            raise ValueError("workers.address is that of a cluster: kind must be dask or ray")
        elif not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://.+:\d+", self.address):
            raise ValueError(f"workers.address {self.address!r} is none of a Dask scheduler: tcp://host:8786")
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


def check_order(field: str, low: float | datetime | None, high: float | datetime | None) -> None:
    """Refuse bounds of which the lower one is the higher.

    Raises:
        ValueError: names the field and both.
    """
    if low is not None and high is not None and not low <= high:  # ty: ignore[unsupported-operator]  (both of one type)
        raise ValueError(f"{field}: {low} lies above {high}")
