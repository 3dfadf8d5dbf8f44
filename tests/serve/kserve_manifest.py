"""Reads an InferenceService as KServe's SDK types it, and prints what does not fit. Runs in an environment of its own.

python kserve_manifest.py < document.json

The SDK's classes are generated from KServe's schema: each knows its keys, and the type of each.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import kserve  # ty: ignore[import-not-found]
import kubernetes.client  # ty: ignore[import-not-found]

PLAIN = {"str": str, "int": int, "bool": bool, "float": float, "object": object}


def problems(value: Any, kind: str, where: str) -> Iterator[str]:
    """What in a value is not of a type, as the SDK names types: ``V1Container``, ``list[str]``, ``dict(str, str)``, ``Dict[str, str]``."""
    if match := re.fullmatch(r"(?i)list\[(.+)\]", kind):
        for number, element in enumerate(value):
            yield from problems(element, match[1], f"{where}[{number}]")
    elif match := re.fullmatch(r"(?i)dict[(\[]str, (.+)[)\]]", kind):
        for key, element in value.items():
            yield from problems(element, match[1], f"{where}.{key}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            yield f"{where} is no {kind}: {value!r}"
    else:
        model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind)
        names = {written: name for name, written in model.attribute_map.items()}
        yield from (f"{where} has no {key}" for key in value if key not in names)
        known = {names[key]: element for key, element in value.items() if key in names}
        model(**known)  # says what is missing
        for name, element in known.items():
            yield from problems(element, model.openapi_types[name], f"{where}.{model.attribute_map[name]}")


if __name__ == "__main__":
    print(json.dumps(list(problems(json.load(sys.stdin), "V1beta1InferenceService", "document"))))
