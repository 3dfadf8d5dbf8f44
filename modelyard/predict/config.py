"""How a batch prediction runs."""

from __future__ import annotations

from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.datasets import Split


class PredictConfig(Frozen):
    """Config of a batch prediction.

    Attributes:
        form: which form of the package answers; empty: its default form.
        split: which split of a data set is answered; raw files have none.
        keep: columns of the input that are written beside the answers, an id say.
        batch_rows: rows per call of the model; fewer where a row is wide.
        threads: of the runtime.
        items: for retrieval: write the vectors of items in place of answers; of a data set every item once, of raw files
            each row.
    """

    form: str = ""
    split: Split = "test"
    keep: list[str] = Field(default_factory=list)
    batch_rows: int = Field(8192, ge=1)
    threads: int = Field(1, ge=1)
    items: bool = False
