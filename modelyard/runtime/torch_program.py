"""`torch.export` programs as files: weights as plain bytes, the graph as JSON.

torch adds the example inputs to the archive as a pickle, and `torch.export.load` unpickles whatever it finds there. They are
emptied when a program is written, together with what tells where it was made; a program that holds more than a graph and
numbers is refused before torch sees it (`modelyard.runtime.plain_program`).
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelyard.errors import DataError
from modelyard.runtime.plain_program import EXAMPLES, GRAPH, plain_program


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program; the same one gives the same bytes.

    Raises:
        DataError: it needs something that no program may hold.
    """
    buffer = io.BytesIO()
    program.example_inputs = None
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for info in sorted(source.infolist(), key=lambda one: one.filename):
            body = b"" if info.filename.endswith(f"/{EXAMPLES}") else _anonymous(info.filename, source.read(info))
            target.writestr(zipfile.ZipInfo(info.filename), body)
    plain_program(path)


def _anonymous(name: str, body: bytes) -> bytes:
    """The graph without stack traces, which tell where it was made, and without guards, which are source code."""
    if not name.endswith(f"/{GRAPH}"):
        return body
    tree = json.loads(body)
    _forget_(tree)
    tree["guards_code"] = []
    tree["torch_version"] = tree["torch_version"].partition("+")[0]
    return json.dumps(tree).encode()


def _forget_(tree: Any) -> None:
    """Empty the metadata of a graph, its nodes and the graphs inside them."""
    if isinstance(tree, dict):
        if isinstance(tree.get("metadata"), dict):
            tree["metadata"] = {}
        for value in tree.values():
            _forget_(value)
    elif isinstance(tree, list):
        for value in tree:
            _forget_(value)


def load_program(path: Path) -> tuple[nn.Module, int]:
    """A program, ready to be called, and the width of its first input (0 where that is open).

    Raises:
        DataError: it is none, or holds something that would run code when read.
    """
    program = read_program(path)
    return program.module(), input_width(program)


def read_program(path: Path) -> torch.export.ExportedProgram:
    """A program as torch knows it.

    Raises:
        DataError: it is none, or holds something that would run code when read.
    """
    try:
        return torch.export.load(plain_program(path))
    except DataError:
        raise
    except Exception as failure:  # torch's own errors share no base class
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise DataError(f"{path.name}: torch cannot load it: {reason}") from failure


def input_width(program: torch.export.ExportedProgram) -> int:
    """Of its first input; 0 where that is open."""
    shape = next(iter(user_inputs(program))).shape
    return shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 0


def user_inputs(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """What stands for each input of the network, with its shape and kind."""
    names = set(program.graph_signature.user_inputs)
    return [node.meta["val"] for node in program.graph.nodes if node.name in names]
