"""The space of a tuning held against the configuration whose keys it varies.

Configurations are plain trees here; who knows their type says what is wrong with one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelyard.errors import ConfigError
from modelyard.nearest import nearest
from modelyard.tune.config import Dimension

Tree = Mapping[str, Any]
# Where (dotted), what, whether it is that the key is unknown: what is wrong with a tree, empty if nothing is.
Problems = Sequence[tuple[tuple[str, ...], str, bool]]

TUNABLE = ("train.", "preprocess.transform.")
DECIDED = {
    "train.target": "trials run to their limits",
    "train.stop.metric": "tune.metric says what is looked at",
}


def require_space(space: Mapping[str, Dimension], tree: Tree, problems_of: Callable[[Tree], Problems]) -> None:
    """Refuse a space that does not fit the configuration, before anything runs.

    Args:
        tree: the configuration, with its defaults.
        problems_of: what is wrong with a tree of it.

    Raises:
        ConfigError: a key that is not there, that tuning may not change or that lies below another one; a value that the
            key does not take. Names key and value. Combinations of values are not looked at.
    """
    for key, dimension in space.items():
        _require_key(key, tree)
        if above := next((other for other in space if key.startswith(f"{other}.")), None):
            raise ConfigError(f"tune.space.{key}", f"is a part of {above!r}, which is tuned as well; leave one out")
        for place, value in _probes(dimension).items():
            _require_value(key, place, value, tree, problems_of)


def whole_numbers(space: Mapping[str, Dimension], tree: Tree, problems_of: Callable[[Tree], Problems]) -> set[str]:
    """Keys of ranges that take whole numbers only."""
    return {
        key
        for key, dimension in space.items()
        if isinstance(dimension.low, int)
        and isinstance(dimension.high, int)
        and (
            isinstance(dimension.step, int)
            or _problems_at(key, problems_of(changed(tree, {key: dimension.low + 0.5}, tree)))
        )
    }


def changed(tree: Tree, parameters: Mapping[str, Any], whole: Tree) -> dict[str, Any]:
    """A tree with single keys set.

    Args:
        whole: the same with all defaults: a section the tree leaves out takes its ``kind`` from there.

    Raises:
        ConfigError: a key below a single value.
    """
    made = copy.deepcopy(dict(tree))
    for key, value in parameters.items():
        *parents, leaf = key.split(".")
        node, shadow = made, whole
        for parent in parents:
            shadow = shadow.get(parent) or {} if isinstance(shadow, Mapping) else {}
            if node.get(parent) is None:
                node[parent] = {"kind": shadow["kind"]} if "kind" in shadow else {}
            node = node[parent]
            if not isinstance(node, dict):
                raise ConfigError(f"tune.space.{key}", f"{parent!r} is a single value, it has no keys below it")
        node[leaf] = copy.deepcopy(value)
    return made


def value_at(tree: Tree, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _require_key(key: str, tree: Tree) -> None:
    if key in DECIDED:
        raise ConfigError(f"tune.space.{key}", f"is not tuned: {DECIDED[key]}")
    if key.startswith(TUNABLE):
        return
    known = _keys(tree)
    if key in known:
        raise ConfigError(
            f"tune.space.{key}",
            "is not tuned: trials differ in keys of train and of preprocess.transform, and are judged on the same rows",
        )
    raise ConfigError("tune.space", nearest(key, [name for name in known if name.startswith(TUNABLE)]))


def _require_value(key: str, place: str, value: Any, tree: Tree, problems_of: Callable[[Tree], Problems]) -> None:
    """Only what is wrong with the key itself counts: another key of the space may mend the rest."""
    for where, what, unknown in _problems_at(key, problems_of(changed(tree, {key: value}, tree))):
        if unknown and len(where) <= len(key.split(".")):
            raise ConfigError("tune.space", nearest(key, [name for name in _keys(tree) if name.startswith(TUNABLE)]))
        raise ConfigError(f"tune.space.{key}", f"{place} {value!r}: {what}")


def _problems_at(key: str, problems: Problems) -> Problems:
    """Those on the way to the key, or below it; types of a union may stand between its parts."""
    parts = key.split(".")
    return [problem for problem in problems if _on_the_way(parts, problem[0], is_unknown=problem[2])]


def _on_the_way(parts: Sequence[str], where: Sequence[str], *, is_unknown: bool) -> bool:
    rest = list(parts)
    for part in where:
        if rest and part == rest[0]:
            rest.pop(0)
    # An unknown section hides the keys below it.
    return not rest or (is_unknown and len(rest) < len(parts) and where[-1] == parts[len(parts) - len(rest) - 1])


def _probes(dimension: Dimension) -> dict[str, Any]:
    if dimension.choices is not None:
        return {f"choice {number}": value for number, value in enumerate(dimension.choices, start=1)}
    return {"low": dimension.low, "high": dimension.high}


def _keys(tree: Any, prefix: str = "") -> list[str]:
    """Every dotted key, sections included."""
    if not isinstance(tree, Mapping):
        return []
    return [name for key, value in tree.items() for name in (f"{prefix}{key}", *_keys(value, f"{prefix}{key}."))]
