"""Which code a result came from, so that an edit of a stage redoes that stage and an edit of the README nothing.

The version of a room is a hash over the sources of the room, of every Modelyard module it imports (directly or
not), of the user's own functions it calls, and the versions of its numerical libraries.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from modelyard.errors import ConfigError

PACKAGE = "modelyard"
# What these decide is how work is found, moved and reported, never what comes out of it.
PLUMBING = {"modelyard", "modelyard.catalog", "modelyard.storage", "modelyard.settings", "modelyard.errors",
            "modelyard.artifacts", "modelyard.code_version", "modelyard.tracking"}  # fmt: skip


def code_version(room: str, libraries: Sequence[str], factories: Sequence[str] = ()) -> str:
    """Version of a room's code.

    Args:
        room: dotted name of a module or package of Modelyard.
        libraries: distributions whose arithmetic the result depends on.
        factories: the user's ``module:function`` entries; the source of each module counts.

    Returns:
        16 hexadecimal digits.

    Raises:
        ConfigError: a factory's module cannot be found.
    """
    sources = [f"{name}={_source_hash(name)}" for name in sorted(_closure(room))]
    # "+cpu" or "+cu130" names a build of the same release: it must not split the identity of the same work.
    releases = [f"{name}=={version(name).partition('+')[0]}" for name in sorted(libraries)]
    custom = [f"{factory}={_factory_hash(factory)}" for factory in sorted(factories)]
    return hashlib.sha256("\n".join([*sources, *releases, *custom]).encode()).hexdigest()[:16]


def installed(libraries: Sequence[str]) -> list[str]:
    """Those of some optional distributions that are installed."""
    found = []
    for name in libraries:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found


@cache
def _closure(room: str) -> frozenset[str]:
    """The room's modules and all Modelyard modules they import, without the plumbing."""
    waiting, seen = _modules_of(room), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name in PLUMBING:
            continue
        seen.add(name)
        waiting |= _imports(name)
    return frozenset(seen)


def _modules_of(room: str) -> set[str]:
    path = _path_of(room)
    if path.name != "__init__.py":
        return {room}
    return {room} | {f"{room}.{file.stem}" for file in path.parent.glob("*.py") if file.stem != "__init__"}


def _imports(name: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(_path_of(name).read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {module for module in found if module.split(".")[0] == PACKAGE}
    return {module for module in ours if _exists(module)}


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False  # `from modelyard.x import name`: a name, not a module


def _path_of(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return Path(spec.origin)


def _source_hash(module: str) -> str:
    return hashlib.sha256(_path_of(module).read_bytes()).hexdigest()


def _factory_hash(factory: str) -> str:
    module = factory.partition(":")[0]
    try:
        path = _path_of(module)
    except ModuleNotFoundError:
        raise ConfigError("factory", f"{factory!r}: no module {module!r} can be imported here") from None
    if not path.is_file():  # built into the interpreter, as sys and os are
        raise ConfigError(
            "factory", f"{factory!r}: {module!r} is a part of Python without a source; name a module of yours"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()
