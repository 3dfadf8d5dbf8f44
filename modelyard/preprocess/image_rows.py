"""Rows of images: one column for each pixel, the class as ``label``, the path as ``file``.

Pixels are columns like any other: training, evaluation, the endpoint's raw rows and the report need nothing new for
them. Nothing is ever unpacked to the disk, so no path inside an archive leads anywhere, and no picture is decoded
before its size is known.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import IO

import numpy as np
import polars as pl

from modelyard.errors import ConfigError, DataError
from modelyard.preprocess.clean import rejection
from modelyard.preprocess.formats import MOST_PIXELS, SUFFIXES, ReadConfig
from modelyard.preprocess.raw_rows import BATCH_BYTES, RawBatch

LABEL, FILE = "label", "file"
CHANNELS = ("red", "green", "blue")
MOST_BYTES = 64 * 2**20  # of one file or member
MOST_DECODED = 64 * 2**20  # pixels of a picture before it is brought to size: 200 MB
SIDECARS = (".cls", ".txt", ".json")
IDX_UBYTE = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image on its way to a row.

    Attributes:
        file: which of the partition's files it is in.
        number: its number there, from 1.
        pixels: (height, width) or (height, width, 3) uint8; or why there are none.
    """

    path: str
    label: str | None
    pixels: np.ndarray | str
    file: int = 0
    number: int = 1


def image_columns(config: ReadConfig, size: tuple[int, int] | None = None) -> list[str]:
    """Names of all columns.

    Args:
        size: height and width where the file says them.

    Raises:
        ConfigError: neither the file nor the config says them.
    """
    size = config.image_size or size
    if size is None:
        raise ConfigError("preprocess.read.image_size", "say the height and width that images are brought to: [28, 28]")
    positions = [f"pixel_{row}_{column}" for row in range(size[0]) for column in range(size[1])]
    if config.image_colour:
        positions = [f"{position}_{channel}" for position in positions for channel in CHANNELS]
    return [*positions, LABEL, FILE]


def class_of(path: str) -> str | None:
    """The folder that a file lies in, without those above."""
    return PurePosixPath(path).parent.name or None


def decoded(body: bytes, config: ReadConfig) -> np.ndarray | str:
    """The pixels of an encoded image, brought to size; or why there are none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    assert config.image_size is not None
    height, width = config.image_size
    try:
        with Image.open(io.BytesIO(body)) as image:
            if image.width * image.height > MOST_DECODED:
                return f"an image of {image.width} x {image.height} pixels is too large"
            image.draft("RGB", (width, height))  # JPEG: decode no more than is needed
            turned = ImageOps.exif_transpose(image)
            if turned.mode.startswith("I;16"):
                turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
            plain = turned.convert("RGB" if config.image_colour else "L")
            return np.asarray(plain.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0))
    except UnidentifiedImageError:
        return "no image of a known form"
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as failure:
        return f"no whole image: {str(failure)[:100]}"


def image_batches(
    pictures: Iterable[Picture], columns: Sequence[str], known: Sequence[str], names: Sequence[str] | Mapping[int, str]
) -> Iterator[RawBatch]:
    """Rows of the wanted columns, with what is no image among them.

    Args:
        known: names of all columns, the pixels first.
        names: of the files that `Picture.file` counts.
    """
    waiting, positions = iter(pictures), {name: at for at, name in enumerate(known)}
    while some := list(islice(waiting, max(1, min(4096, BATCH_BYTES // len(known))))):
        good = [picture for picture in some if isinstance(picture.pixels, np.ndarray)]
        lines = [_refused(picture, names) for picture in some if not isinstance(picture.pixels, np.ndarray)]
        yield RawBatch(
            _frame(good, columns, positions),
            np.array([picture.number for picture in good], dtype=np.int64),
            pl.concat(lines) if lines else None,
            np.array([picture.file for picture in good], dtype=np.int32),
        )


def _refused(picture: Picture, names: Sequence[str] | Mapping[int, str]) -> pl.DataFrame:
    path = pl.Series([picture.path], dtype=pl.String)
    return rejection(names[picture.file], np.array([picture.number]), "", str(picture.pixels), path)


def _frame(pictures: Sequence[Picture], columns: Sequence[str], positions: Mapping[str, int]) -> pl.DataFrame:
    stacked = np.array([picture.pixels for picture in pictures], dtype=np.uint8)
    by_column = np.ascontiguousarray(stacked.reshape(len(pictures), -1).T) if pictures else None
    others = {
        LABEL: pl.Series(LABEL, [picture.label for picture in pictures], dtype=pl.String),
        FILE: pl.Series(FILE, [picture.path for picture in pictures], dtype=pl.String),
    }
    empty = np.empty(0, dtype=np.uint8)
    return pl.DataFrame(
        [
            others[name]
            if name in others
            else pl.Series(name, empty if by_column is None else by_column[positions[name]])
            for name in columns
        ]
    )


# -- archives -----------------------------------------------------------------------------------------------------


def tar_pictures(stream: IO[bytes], config: ReadConfig) -> Iterator[Picture]:
    """Images of an archive, in its order: the class from a file of the same name beside it, else from the folder."""
    number = 0
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for members in _by_stem(archive):
            said = next((_said(suffix, members[suffix]) for suffix in SIDECARS if suffix in members), None)
            for suffix, (path, body) in members.items():
                if SUFFIXES.get(suffix) == "image":
                    number += 1
                    label = said if said is not None else class_of(path)
                    pixels = body if isinstance(body, str) else decoded(body, config)
                    yield Picture(path=path, label=label, pixels=pixels, number=number)


def _by_stem(archive: tarfile.TarFile) -> Iterator[dict[str, tuple[str, bytes | str]]]:
    """Neighbours that differ in their suffix alone: suffix -> path, and content or why there is none."""
    stem, members = "", {}
    for member in archive:
        if member.isdir():
            continue
        path = PurePosixPath(member.name)
        if str(path.with_suffix("")) != stem:
            if members:
                yield members
            stem, members = str(path.with_suffix("")), {}
        members[path.suffix.lower()] = (member.name, _content(archive, member))
    if members:
        yield members


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    if not member.isfile():
        return "no image: a link or device"
    if member.size > MOST_BYTES:
        return f"larger than {MOST_BYTES // 2**20} MB"
    file = archive.extractfile(member)
    assert file is not None  # a plain file
    return file.read()


def _said(suffix: str, member: tuple[str, bytes | str]) -> str | None:
    body = member[1]
    if isinstance(body, str):
        return None
    try:
        text = body.decode().strip()
        if suffix != ".json":
            return text
        found = json.loads(text)
    except ValueError:  # no UTF-8, no JSON
        return None
    label = found.get(LABEL) if isinstance(found, dict) else None
    return None if label is None else str(label)


# -- IDX ----------------------------------------------------------------------------------------------------------


def idx_size(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Height and width of an IDX file's images."""
    _, height, width = _idx_head(stream, name, 3)
    if height * width > MOST_PIXELS:
        raise DataError(f"{name}: images of {height} x {width}; each pixel becomes a column, at most {MOST_PIXELS:,}")
    return height, width


def idx_pictures(images: IO[bytes], labels: IO[bytes], name: str, config: ReadConfig) -> Iterator[Picture]:
    """Images and labels of two IDX files, side by side.

    Raises:
        DataError: they are of different lengths, or cut off.
    """
    count, height, width = _idx_head(images, name, 3)
    (num_labels,) = _idx_head(labels, f"labels of {name}", 1)
    if count != num_labels:
        raise DataError(f"{name}: {count} images, but {num_labels} labels")
    for number in range(1, count + 1):
        body, label = images.read(height * width), labels.read(1)
        if len(body) < height * width or not label:
            raise DataError(f"{name}: cut off after image {number - 1} of {count}; upload it again")
        pixels = np.frombuffer(body, dtype=np.uint8).reshape(height, width)
        yield Picture(path=f"{name}/{number}", label=str(label[0]), pixels=_resized(pixels, config), number=number)


def _idx_head(stream: IO[bytes], name: str, dimensions: int) -> tuple[int, ...]:
    head = stream.read(4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions or head[:4] != bytes([0, 0, IDX_UBYTE, dimensions]):
        raise DataError(f"{name}: no IDX file of unsigned bytes in {dimensions} dimensions; see its first four bytes")
    return tuple(int(size) for size in np.frombuffer(head[4:], dtype=">u4"))


def _resized(pixels: np.ndarray, config: ReadConfig) -> np.ndarray:
    if config.image_size and config.image_size != pixels.shape:
        from PIL import Image

        height, width = config.image_size
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    return np.repeat(pixels[:, :, None], 3, axis=2) if config.image_colour else pixels
