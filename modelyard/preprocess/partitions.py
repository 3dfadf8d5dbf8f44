"""How a data set's files are grouped: each group is processed, kept and found again on its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import DataError
from modelyard.preprocess.snapshot import Source

IMAGES, LABELS = re.compile("images(.)idx3"), re.compile("labels(.)idx1")


class Partition(Frozen):
    """Files that are processed together, in order of arrival.

    Attributes:
        companions: name of an IDX file of images -> that of its labels.
    """

    sources: list[Source]
    companions: dict[str, Source] = Field(default_factory=dict)


def partitions(sources: Sequence[Source], target_bytes: int) -> list[Partition]:
    """Files in groups; large ones alone, small ones together, of about ``target_bytes``.

    Where a group ends follows from the file there, by its digest, and not from how much came before (content-defined
    chunking; Muthitacharoen et al., 2001): a file that is added, changed or removed moves the borders of its own group
    only.

    Raises:
        DataError: labels without images, or images without labels, in IDX files.
    """
    labels = {source.name: source for source in sources if LABELS.search(source.name)}
    companions = {}
    for source in sources:
        wanted = IMAGES.sub(r"labels\1idx1", source.name)
        if wanted != source.name:
            if wanted not in labels:
                raise DataError(f"{source.name}: its labels are not there; they would be called {wanted}")
            companions[source.name] = labels.pop(wanted)
    if labels:
        raise DataError(f"{min(labels)}: the images that these labels belong to are not there")
    known = {source.name for source in companions.values()}
    groups: list[list[Source]] = [[]]
    for source in sources:
        if source.name in known:
            continue
        if source.size >= target_bytes and groups[-1]:
            groups.append([])
        groups[-1].append(source)
        if _ends_group(source, target_bytes):
            groups.append([])
    return [
        Partition(
            sources=group, companions={file.name: companions[file.name] for file in group if file.name in companions}
        )
        for group in groups
        if group
    ]


def _ends_group(source: Source, target_bytes: int) -> bool:
    """True for a share of the files that makes groups as large as wanted on average."""
    return int(source.sha256[:12], 16) / 16**12 < source.size / target_bytes
