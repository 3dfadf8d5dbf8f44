"""What a user says about the way from columns to network input."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelyard.artifacts import Frozen

PaddingName = Literal["longest", "fixed"]
DatePart = Literal["elapsed", "month", "day", "weekday", "hour", "minute"]


class SelectConfig(Frozen):
    """Feature selection: inputs that tell little are left out. Judged after encoding, on the training split."""

    variance: float | None = Field(None, ge=0, description="inputs whose variance is not above this are left out")
    mutual_information: int | None = Field(
        None, ge=1, description="of the rest, this many that say most about the label (Kraskov et al., 2004) stay"
    )


class TokenConfig(Frozen):
    """How texts become tokens, for language modelling."""

    vocabulary: int = Field(
        4096, ge=257, le=1_000_000, description="tokens at most; a small text has fewer worth their place"
    )
    sequence_length: int = Field(256, ge=2, le=1_000_000, description="tokens a row of training has")


class TextConfig(Frozen):
    """How a column of type text becomes the tokens of a network that others trained."""

    source: str = Field(
        "", description="folder with the network's tokenizer.json: file:///..., s3://...; the one of train.model.source"
    )
    max_length: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        description="tokens of a text at most; empty: what the network was made for, up to 512",
    )
    padding: PaddingName = Field(
        "longest", description="longest: a batch is as wide as its longest text; fixed: always max_length"
    )


class TransformConfig(Frozen):
    """How columns become the numbers that a network takes; everything is fitted on the training split alone."""

    scaling: Literal["standard", "minmax", "image", "none"] = Field(
        "standard", description="numbers to mean 0 and deviation 1; to 0..1; divided by 255; as they are"
    )
    categories: Literal["one_hot", "ordinal", "hashing"] = Field(
        "one_hot", description="one input for each value; one for all, by frequency; one for each of `hash_buckets`"
    )
    max_categories: int = Field(64, ge=1, description="the most frequent values are told apart, others are unknown")
    hash_buckets: int = Field(32, ge=2)
    table_rows: int = Field(
        1_000_000,
        ge=1,
        le=2**24 - 2,
        description="for retrieval: the most frequent values of a category, each with a vector of its own; others share one",
    )
    date_parts: list[DatePart] = Field(
        ["elapsed", "month", "weekday", "hour"],
        min_length=1,
        description="elapsed: 0..1 over the training split; the others as sine and cosine",
    )
    select: SelectConfig = SelectConfig()
    tokens: TokenConfig = TokenConfig()
    text: TextConfig = TextConfig()
    components: int | None = Field(None, ge=1, description="inputs after an incremental PCA (Ross et al., 2008)")
