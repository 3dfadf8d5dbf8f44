"""A torch network as ONNX, without anything in the file that tells where or when it was made."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from modelyard.errors import ConversionFailed

OPSET = 20
INPUT, OUTPUT, BATCH, SEQUENCE = "features", "outputs", "batch", "sequence"
EXAMPLE_TOKENS = 8
PRODUCER = "modelyard"


def export_onnx(model: nn.Module, input_width: int, path: Path) -> None:
    """Write a network of (n, input_width) float32 to (n, k) as ONNX, n left open; one that reads tokens (n, t) int64 with
    t open too, up to input_width.

    Raises:
        ConversionFailed: torch's exporter cannot convert it.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                model.eval(),
                (example_of(model, input_width),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(open_axes(model, input_width),),
                external_data=False,
                verbose=False,
            )
    except Exception as failure:  # the exporter's own errors share no public base class
        reason = str(failure.__cause__ or failure).strip().splitlines()[0]
        raise ConversionFailed(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from failure
    assert program is not None  # it is None only for the exporter that writes the file itself
    save_onnx(program.model_proto, path)


def example_of(model: nn.Module, input_width: int) -> torch.Tensor:
    """Network input to export with. Two rows: torch specialises a dimension of size 1."""
    if getattr(model, "reads_tokens", False):
        return torch.zeros(2, min(EXAMPLE_TOKENS, input_width), dtype=torch.int64)
    return torch.zeros(2, input_width)


def open_axes(model: nn.Module, input_width: int) -> dict[int, Any]:
    """The axes of network input whose size is left open."""
    axes: dict[int, Any] = {0: torch.export.Dim(BATCH)}
    if getattr(model, "reads_tokens", False):
        axes[1] = torch.export.Dim(SEQUENCE, max=input_width)
    return axes


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model with what varies between machines and runs taken out or put in order."""
    anonymise_(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def anonymise_(model: onnx.ModelProto) -> None:
    """Remove stack traces, paths, documentation and versions of tools; sort what has no order."""
    model.producer_name, model.producer_version = PRODUCER, ""
    for part in _parts(model):
        part.ClearField("metadata_props")
        if "doc_string" in part.DESCRIPTOR.fields_by_name:
            part.ClearField("doc_string")
        if isinstance(part, onnx.NodeProto):
            _sort(part.attribute)
    _sort(model.graph.value_info)


def _parts(model: onnx.ModelProto) -> Iterator[Any]:
    """Every part of a model that can carry documentation or metadata."""
    yield model
    for graph in (model.graph, *model.functions):
        yield graph
        yield from _nodes(graph)
        yield from graph.value_info
    for group in (model.graph.initializer, model.graph.input, model.graph.output):
        yield from group


def _nodes(graph: Any) -> Iterator[onnx.NodeProto]:
    """Nodes of a graph, including those of branches and loop bodies."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)


def _sort(fields: Any) -> None:
    ordered = sorted(fields, key=lambda field: field.name)
    del fields[:]
    fields.extend(ordered)


@contextmanager
def _quiet() -> Generator[None]:
    """The exporter warns of its own dependencies' deprecations and of packages it could also have used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
