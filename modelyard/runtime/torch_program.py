"""`torch.export` programs as files: weights as plain bytes, the graph as JSON.

torch adds the example inputs to the archive as a pickle, and `torch.export.load` unpickles whatever it finds there. They
are emptied when a program is written, and a program that brings a pickle or native code along is refused before torch
sees it.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch
from torch import nn

from modelyard.errors import DataError

EXAMPLES = "/data/sample_inputs/"
# Pickles (an archive of torch's own too), and what AOTInductor compiles.
CODE = (".pt", ".pkl", ".so", ".o", ".cpp", ".cubin", ".py")
# What torch stores as a pickle says so here.
CONFIGS = ("model_weights_config.json", "model_constants_config.json")


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program; the same one gives the same bytes."""
    buffer = io.BytesIO()
    program.example_inputs = None
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for info in sorted(source.infolist(), key=lambda one: one.filename):
            body = b"" if EXAMPLES in info.filename else _anonymous(info.filename, source.read(info))
            target.writestr(zipfile.ZipInfo(info.filename), body)


def _anonymous(name: str, body: bytes) -> bytes:
    """The graph without stack traces, which tell where it was made."""
    if not name.endswith("/models/model.json"):
        return body
    tree = json.loads(body)
    for node in tree["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    tree["torch_version"] = tree["torch_version"].partition("+")[0]
    return json.dumps(tree).encode()


def load_program(path: Path) -> tuple[nn.Module, int]:
    """A program, ready to be called, and the width of its first input (0 where that is open).

    Raises:
        DataError: it is none, or holds something that would run code when read.
    """
    try:
        _refuse_code(path)
        program = torch.export.load(path)
    except (zipfile.BadZipFile, RuntimeError, KeyError, ValueError, OSError) as failure:
        raise DataError(f"{path.name}: torch cannot load it: {str(failure).splitlines()[0]}") from failure
    names = set(program.graph_signature.user_inputs)
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name in names)
    width = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 0
    return program.module(), width


def _refuse_code(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            if name.endswith(CODE) and info.file_size:
                raise DataError(f"{path.name} holds {name}, which could run code where it is loaded")
            if name.endswith(CONFIGS) and _pickled(json.loads(archive.read(info))):
                raise DataError(f"{path.name} holds weights as a pickle, which could run code where it is loaded")


def _pickled(tree: object) -> bool:
    if isinstance(tree, dict):
        return bool(tree.get("use_pickle")) or any(map(_pickled, tree.values()))
    return isinstance(tree, list) and any(map(_pickled, tree))
