"""Refuse a `torch.export` program that would run code where torch reads it.

torch trusts such a file. It unpickles what is stored as a pickle, evaluates sizes as Python expressions (`sympy.sympify`), executes
guards as Python source, writes the names of values into a function that it then compiles, and finds operators by any dotted
name. So every text in a program is held against the little that the export of a network needs. What is not on the list is
refused, whatever it is. torch is not imported here.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelyard.errors import DataError

GRAPH = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
FILES = re.compile(
    r"\.data/(serialization_id|version)|version|archive_format|archive_version|byteorder|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
NAME = re.compile(r"[\w.]*|-?Infinity", re.ASCII)
OPERATORS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift)"
    r"|math\.trunc|torch\.sym_(not|int|float|ite|max|min|sqrt)",
    re.ASCII,
)
# What operators are told in words. No file's name is among them.
WORDS = {"", "none", "tanh", "mean", "sum", "floor", "trunc", "cpu", "ij", "xy", "constant", "reflect", "replicate"}
# Sizes, as sympy writes them.
NAMED = {"Symbol", "Float"}
ARITHMETIC = {
    "Integer", "Rational", "Add", "Mul", "Pow", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv",
    "ModularIndexing", "PowByNatural", "Max", "Min", "Equality", "Unequality", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "Where", "CeilToInt", "FloorToInt", "TruncToInt", "ToFloat",
}  # fmt: skip
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


class NotPlain(ValueError):
    """A text that is none of those that are known to be harmless."""


def plain_program(path: Path) -> io.BytesIO:
    """A program as an archive of its own making, so that torch reads exactly what was checked.

    Raises:
        DataError: it holds something that could run code where it is loaded.
        zipfile.BadZipFile, KeyError, ValueError: it is no such archive.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
            _check_files(source.infolist())
            for info in source.infolist():
                body = source.read(info)
                if info.filename.endswith(".json"):
                    check_texts(json.loads(body))
                target.writestr(zipfile.ZipInfo(info.filename), body)
    except NotPlain as found:
        raise DataError(f"{path.name} holds {found}, which could run code where it is loaded") from None
    copy.seek(0)
    return copy


def _check_files(files: Iterable[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for info in files:
        folder, _, inside = info.filename.partition("/")
        if not FILES.fullmatch(inside) or (inside == EXAMPLES and info.file_size):
            raise NotPlain(info.filename)
        if info.filename in seen or any(not name.startswith(f"{folder}/") for name in seen):
            raise NotPlain(f"{info.filename} beside {min(seen)}")
        seen.add(info.filename)


def check_texts(tree: Any, key: str = "") -> None:
    """Check every text of a JSON document, and every name of its fields.

    Raises:
        NotPlain: one is more than a name, a size or an operator.
    """
    match tree:
        case dict() if key == "metadata" and tree:
            raise NotPlain(f"metadata {_short(tree)}")
        case list() if key == "guards_code" and tree:
            raise NotPlain(f"guards {_short(tree)}")
        case dict():
            if tree.get("use_pickle"):
                raise NotPlain("weights as a pickle")
            for name, value in tree.items():
                check_texts(name)
                check_texts(value, name)
        case list():
            for value in tree:
                check_texts(value, key)
        case str():
            if not _is_plain(tree, key):
                raise NotPlain(f"{key or 'the name'} {_short(tree)}")
        case _:
            pass


def _is_plain(text: str, key: str) -> bool:
    match key:
        case "expr_str":
            return _is_size(text)
        case "target":
            return bool(OPERATORS.fullmatch(text))
        case "in_spec" | "out_spec":
            return _is_container(json.loads(text)[1])
        case "as_string" | "as_strings":
            return text in WORDS
        case _:
            return bool(NAME.fullmatch(text))


def _is_size(text: str) -> bool:
    try:
        return _is_arithmetic(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_arithmetic(node: ast.expr) -> bool:
    """Whether an expression is made of calls of sympy's own numbers, symbols and operators alone."""
    match node:
        case ast.Constant(value=bool() | int() | float()) | ast.Name(id="true" | "false"):
            return True
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_arithmetic(operand)
        case ast.Call(func=ast.Name(id=name), args=values, keywords=options):
            plain = all(isinstance(one.value, ast.Constant) and one.arg for one in options)
            if name in NAMED:
                return plain and all(_is_name(value) for value in values)
            return plain and name in ARITHMETIC and all(map(_is_arithmetic, values))
        case _:
            return False


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and bool(NAME.fullmatch(str(node.value)))


def _is_container(spec: Any) -> bool:
    """Whether inputs or outputs are packed in nothing but Python's own tuples, lists and dicts."""
    context = json.loads(spec["context"]) if spec["context"] else None
    names = context if isinstance(context, list) else [context] if context else []
    plain = spec["type"] in CONTAINERS and all(isinstance(name, str) and NAME.fullmatch(name) for name in names)
    return plain and all(map(_is_container, spec["children_spec"]))


def _short(found: object) -> str:
    return str(found)[:80]
