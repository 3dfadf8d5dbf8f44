"""What a loaded version takes and gives, as its worker finds it and the router knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelyard.transform import RowTransform, TextTransform, read_row_transform


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """What a loaded version takes and gives.

    Attributes:
        columns: feature columns, in order.
        outputs: (name, datatype of the v2 protocol, columns; 0 for one value a row, or for each token of one).
        transform: reads raw columns that are no plain numbers (texts, categories, dates, gaps); None where all are.
        tags: where answers are for each token of a text: the classes; else None.
    """

    columns: list[str]
    outputs: list[tuple[str, str, int]]
    transform: RowTransform | None = None
    tags: list[str] | None = None

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def reads_text(self) -> bool:
        """Whether its rows are tokens of a text (n, t), of any t."""
        return isinstance(self.transform, TextTransform)


def worker_info(said: Mapping[str, Any]) -> WorkerInfo:
    """What a worker said of itself, as JSON."""
    outputs = [(name, datatype, columns) for name, datatype, columns in said["outputs"]]
    transform = read_row_transform(said["transform"]) if said["transform"] else None
    return WorkerInfo(columns=said["columns"], outputs=outputs, transform=transform, tags=said["tags"])
