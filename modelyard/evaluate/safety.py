"""Is a package what it claims to be? Looked at before anything of it is executed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import DataError

if TYPE_CHECKING:
    import onnx

# Operators of the standard, and those of the runtime's own library (its quantized kernels are there).
KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
MAX_NODES = 100_000  # of a 175-billion-parameter transformer there are some 10,000


def refuse_unsafe_networks(folder: Path) -> None:
    """Make sure that every ONNX file of a package is a whole graph of known operators that keeps to itself.

    Raises:
        DataError: names the file and what is wrong: broken or truncated, operators of a foreign library (which would
            be loaded as native code), weights kept in another file or outside the package, or a graph beyond all bounds.
    """
    for path in sorted(folder.rglob("*.onnx")):
        _refuse_unsafe(path)


def _refuse_unsafe(path: Path) -> None:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as failure:  # protobuf's and onnx's errors share no base class
        raise DataError(f"{path.name} is no whole ONNX network: {_first_line(failure)}") from failure
    foreign = sorted(
        {f"{node.domain}::{node.op_type}" for node in _nodes(model.graph) if node.domain not in KNOWN_DOMAINS}
    )
    if foreign or model.functions:
        own = [f"{one.domain}::{one.name}" for one in model.functions]
        raise DataError(f"{path.name} uses operators of a library of its own: {', '.join([*foreign, *own][:5])}")
    if outside := _external(model.graph):
        raise DataError(f"{path.name} keeps weights outside itself ({', '.join(outside[:3])}); export it as one file")
    num_nodes = sum(1 for _ in _nodes(model.graph))
    if num_nodes > MAX_NODES:
        raise DataError(f"{path.name} has {num_nodes:,} nodes; more than {MAX_NODES:,} are no network")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _graphs(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loops included."""
    for one in _graphs(graph):
        yield from one.node


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a graph holds: weights, and constants of its nodes, sparse ones as well."""
    for one in _graphs(graph):
        yield from one.initializer
        for sparse in one.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in one.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
                    yield from (sparse.values, sparse.indices)


def _external(graph: onnx.GraphProto) -> list[str]:
    """Where weights lie that are not in the file."""
    return [
        next((entry.value for entry in tensor.external_data if entry.key == "location"), "somewhere")
        for tensor in _tensors(graph)
        if tensor.external_data or tensor.data_location == tensor.EXTERNAL
    ]


def _first_line(failure: Exception) -> str:
    return str(failure).strip().splitlines()[0][:200] if str(failure).strip() else type(failure).__name__
