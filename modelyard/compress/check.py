"""What a converted model must satisfy before anybody measures it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError
from torch import nn

from modelyard.errors import ConversionFailed
from modelyard.likeness import cosines
from modelyard.runtime import Runtime, answer_tokens
from modelyard.transform.text import NO_TOKEN

# Neither is the length that networks are exported with, nor a multiple of it.
LENGTHS = (3, 13)
# ONNX's own operators and onnxruntime's: what any onnxruntime build executes without further libraries.
ALLOWED_DOMAINS = {"", "ai.onnx", "com.microsoft"}


@dataclass(frozen=True)
class Parity:
    """How a converted model's outputs compare with its parent's over ``num_rows`` rows.

    Attributes:
        largest_difference: of any output, as a fraction of the largest output (or of 1 where all are smaller).
        agreement_fraction: rows whose largest output is the same one; of answers for each token, those in which all are.
        mean_cosine, smallest_cosine: between the outputs of a row, where those are a vector; else None.
    """

    num_rows: int
    largest_difference: float
    agreement_fraction: float
    mean_cosine: float | None = None
    smallest_cosine: float | None = None

    @classmethod
    def of(cls, num_rows: int, difference: float, num_agreeing: int, angles: Sequence[np.ndarray]) -> Parity:
        """From counts, and the cosines (n,) of batches, none where rows are no vectors."""
        found = np.concatenate(angles) if angles else None
        return cls(
            num_rows,
            difference,
            num_agreeing / max(num_rows, 1),
            mean_cosine=None if found is None else float(found.mean()),
            smallest_cosine=None if found is None else float(found.min()),
        )


def check_operators(path: Path) -> dict[str, int]:
    """Validate a model file; how often each operator occurs in it.

    Raises:
        ConversionFailed: not valid ONNX, or with operators that only a special build executes.
    """
    model = onnx.load(path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (ValidationError, InferenceError) as failure:
        raise ConversionFailed(f"{path.name} is not valid ONNX: {failure}") from failure
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ALLOWED_DOMAINS}
    )
    if foreign:
        raise ConversionFailed(f"{path.name} has operators outside ONNX's and onnxruntime's own: {', '.join(foreign)}")
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def compare(
    parent: nn.Module, converted: Runtime, batches: Iterable[np.ndarray], *, as_vectors: bool = False
) -> Parity:
    """Run both models over batches of network input, each (n, width) float32, or tokens (n, t) int64.

    Args:
        as_vectors: measure angles too.
    """
    angles: list[np.ndarray] = []
    num_rows = num_agreeing = 0
    difference = largest = 0.0
    for features in batches:
        expected = outputs_of(parent, features)
        actual = converted.run(features)
        num_rows += len(features)
        num_agreeing += int(agreeing(expected, actual).sum())
        # np.maximum keeps NaN, where max() would drop it.
        difference = float(np.maximum(difference, np.abs(actual - expected).max()))
        largest = float(np.maximum(largest, np.abs(expected).max()))
        if as_vectors:
            angles.append(cosines(expected, actual))
    return Parity.of(num_rows, difference / max(largest, 1.0), num_agreeing, angles)


def agreeing(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Rows (n,) whose largest output is the same one, for outputs (n, k); for (n, t, k) of every token."""
    same = expected.argmax(axis=-1) == actual.argmax(axis=-1)
    return same.all(axis=1) if same.ndim == 2 else same


def outputs_of(network: nn.Module, rows: np.ndarray) -> np.ndarray:
    """Outputs (n, k) of a torch network for network input; of tokens, some rows at a time."""

    def answer(some: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(some)).numpy()

    return answer_tokens(answer, rows) if rows.dtype.kind == "i" else answer(rows)


def require_open_axes(runtime: Runtime, rows: np.ndarray) -> None:
    """Refuse a form that was fixed to the number of rows, or the length of texts, that it was exported with.

    Args:
        rows: (n, width) network input or tokens, n >= 1.

    Raises:
        ConversionFailed: it does not take one row, or three; or texts of some lengths up to the width.
    """
    for batch in (rows[:1], np.resize(rows, (3, rows.shape[1]))):
        if _shape_of(runtime, batch, f"a batch of {len(batch)} rows")[0] != len(batch):
            raise ConversionFailed(f"it answers {len(batch)} rows with another number of outputs")
    if rows.dtype.kind == "i":
        for length in sorted({min(length, rows.shape[1]) for length in (*LENGTHS, rows.shape[1])}):
            _shape_of(runtime, _text_of(rows[0], length), f"texts of {length} tokens")


def _shape_of(runtime: Runtime, batch: np.ndarray, what: str) -> tuple[int, ...]:
    try:
        return runtime.run(np.ascontiguousarray(batch)).shape
    except Exception as failure:  # the engines' own errors share no base class
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise ConversionFailed(f"it does not take {what}: {reason}") from failure


def _text_of(row: np.ndarray, length: int) -> np.ndarray:
    """One row (1, t) of so many tokens: those of another, again and again."""
    text = np.full((1, len(row)), NO_TOKEN, dtype=row.dtype)
    text[0, :length] = np.resize(row[row >= 0], length)
    return text


def require_finite(form: str, parity: Parity) -> None:
    """Refuse a form that answers something that is no number.

    Raises:
        ConversionFailed: somewhere over the rows it did.
    """
    if not math.isfinite(parity.largest_difference):
        raise ConversionFailed(
            f"the form {form!r} answers NaN or infinity for some of {parity.num_rows} validation rows"
        )


def check_parity(form: str, parity: Parity, tolerance: float) -> None:
    """Hold a conversion that should change nothing against its tolerance.

    Raises:
        ConversionFailed: it does change something, or there were no rows to tell by.
    """
    if not parity.num_rows:
        raise ConversionFailed(f"the form {form!r} could not be compared: the validation split has no rows")
    if not parity.largest_difference <= tolerance:  # so that NaN fails
        raise ConversionFailed(
            f"the form {form!r} differs from the trained network by {parity.largest_difference:.3g} of its largest"
            f" output over {parity.num_rows} validation rows, allowed is {tolerance:.3g};"
            f" {parity.agreement_fraction:.2%} of the rows agree in their answer"
        )
