"""How a data set's files are grouped: each group is processed, kept and found again on its own."""

from __future__ import annotations

from collections.abc import Iterable

from modelyard.artifacts import Frozen
from modelyard.preprocess.snapshot import Source


class Partition(Frozen):
    """Files that are processed together, in order of arrival."""

    sources: list[Source]


def partitions(sources: Iterable[Source], target_bytes: int) -> list[Partition]:
    """Files in groups; large ones alone, small ones together, of about ``target_bytes``.

    Where a group ends follows from the file there, by its digest, and not from how much came before (content-defined
    chunking; Muthitacharoen et al., 2001): a file that is added, changed or removed moves the borders of its own group
    only.
    """
    groups: list[list[Source]] = [[]]
    for source in sources:
        if source.size >= target_bytes and groups[-1]:
            groups.append([])
        groups[-1].append(source)
        if _ends_group(source, target_bytes):
            groups.append([])
    return [Partition(sources=group) for group in groups if group]


def _ends_group(source: Source, target_bytes: int) -> bool:
    """True for a share of the files that makes groups as large as wanted on average."""
    return int(source.sha256[:12], 16) / 16**12 < source.size / target_bytes
