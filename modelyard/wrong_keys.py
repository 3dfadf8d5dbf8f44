"""What a wrong key or value of a preset is answered with: the key as its author wrote it, and a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from modelyard.nearest import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

TAGS = ("kind", "technique")  # keys that say which of several sections one is
# Errors whose sentence needs no repetition of what was written.
SAY_IT_THEMSELVES = ("extra_forbidden", "literal_error", "missing", "union_tag_invalid", "union_tag_not_found")


def key_of(place: Sequence[str | int], root: type[BaseModel]) -> str:
    """A place in pydantic's terms as a dotted key: without the tags that it puts in for sections of several kinds."""
    return ".".join(_walk(place, root)[0])


def sentence_of(error: ErrorDetails, root: type[BaseModel]) -> str:
    """What is wrong, and what to write instead.

    Args:
        root: the class of the whole tree.
    """
    context = error.get("ctx", {})
    *above, last = error["loc"] or ("",)
    match error["type"]:
        case "extra_forbidden":
            return nearest(str(last), sorted({name for one in _walk(above, root)[1] for name in one.model_fields}))
        case "literal_error":
            return nearest(str(error["input"]), re.findall(r"'([^']*)'", str(context["expected"])))
        case "union_tag_invalid":
            known = re.findall(r"'([^']*)'", str(context["expected_tags"]))
            return f"{str(context['discriminator']).strip(chr(39))} {nearest(str(context['tag']), known)}"
        case "union_tag_not_found":
            tag = str(context["discriminator"]).strip("'")
            return f"say its {tag} as well, as one of {', '.join(_tags(_walk(error['loc'], root)[1]))}"
        case "model_type":
            below = sorted({name for one in _walk(error["loc"], root)[1] for name in one.model_fields})
            return f"a section, with keys below it: {', '.join(below)}"
        case _:
            return error["msg"].removeprefix("Value error, ")


def unbounded(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Numbers of a configuration that are NaN or infinite, by their dotted keys: no key of an artifact can hold them."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from unbounded(value, (*place, str(key)))
    elif isinstance(tree, list | tuple):
        for at, value in enumerate(tree):
            yield from unbounded(value, (*place, str(at)))
    elif isinstance(tree, float) and not math.isfinite(tree):
        yield ".".join(place), tree


def _walk(place: Sequence[str | int], root: type[BaseModel]) -> tuple[list[str], list[type[BaseModel]]]:
    """The parts of a place that a preset has, and the classes of the section it leads to: several where a tag is missing."""
    path: list[str] = []
    classes: list[type[BaseModel]] = [root]
    for part in place:
        fields = [one.model_fields[part] for one in classes if isinstance(part, str) and part in one.model_fields]
        tagged = [one for one in classes if part in _tags([one])]
        if tagged and not fields:
            classes = tagged
            continue
        path.append(str(part))
        # Below a list or a mapping the part is a number or a key: what lies there is what the field names.
        classes = list(dict.fromkeys(_sections(field.annotation for field in fields))) if fields else classes
    return path, classes


def _sections(annotations: Iterable[Any]) -> Iterator[type[BaseModel]]:
    """Config classes that annotations name, however deep."""
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        else:
            yield from _sections(get_args(annotation))


def _tags(classes: Iterable[type[BaseModel]]) -> list[str]:
    """What tells each of these classes from the others of its union."""
    fields = [one.model_fields[tag] for one in classes for tag in TAGS if tag in one.model_fields]
    return [str(value) for field in fields for value in get_args(field.annotation)]
