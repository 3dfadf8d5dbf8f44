"""Files that are one image each: fetched several at a time, verified against the snapshot, many to a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from modelyard.errors import DataError, NotFound
from modelyard.preprocess.formats import ReadConfig
from modelyard.preprocess.image_rows import MOST_BYTES, Picture, class_of, decoded, image_batches, image_columns
from modelyard.preprocess.locations import local_path
from modelyard.preprocess.raw_rows import RawBatch
from modelyard.preprocess.snapshot import Source
from modelyard.storage import Store

PARALLEL_IMAGES = 16


def loose_images(
    store: Store, folder: str, sources: Sequence[tuple[int, Source]], columns: Sequence[str], config: ReadConfig
) -> Iterator[RawBatch]:
    """Rows of files that are one image each; several are fetched at a time.

    Args:
        sources: with the number of each in its partition.
    """
    known, names = image_columns(config), {number: source.name for number, source in sources}

    def picture(at: tuple[int, Source]) -> Picture:
        number, source = at
        too_large = f"larger than {MOST_BYTES // 2**20} MB"
        pixels = too_large if source.size > MOST_BYTES else decoded(_read_whole(store, folder, source), config)
        return Picture(path=source.name, label=class_of(source.name), pixels=pixels, file=number)

    def pictures() -> Iterator[Picture]:
        with ThreadPoolExecutor(PARALLEL_IMAGES) as pool:
            for start in range(0, len(sources), PARALLEL_IMAGES):
                yield from pool.map(picture, sources[start : start + PARALLEL_IMAGES])

    yield from image_batches(pictures(), columns, known, names)


def _read_whole(store: Store, folder: str, source: Source) -> bytes:
    uri = f"{folder}/{source.name}"
    own = local_path(uri)
    try:
        body = store.get(uri) if own is None else own.read_bytes()
    except (NotFound, FileNotFoundError) as gone:
        raise DataError(
            f"{uri}: gone since the snapshot was taken; put it back, or run again for a new snapshot"
        ) from gone
    if hashlib.sha256(body).hexdigest() != source.sha256:
        raise DataError(f"{uri}: changed since the snapshot was taken; run again for a new snapshot")
    return body
