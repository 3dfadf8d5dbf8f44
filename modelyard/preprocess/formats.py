"""What a file is: by its first bytes where they say it, by its name where they do not, or as the user says."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.errors import DataError

Format = Literal["csv", "parquet", "jsonl", "arrow", "image", "idx", "tar", "text"]
Packing = Literal["gzip", "zstd"]

SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".arrow": "arrow", ".arrows": "arrow", ".feather": "arrow", ".ipc": "arrow",
    ".png": "image", ".jpg": "image", ".jpeg": "image", ".bmp": "image", ".gif": "image", ".webp": "image",
    ".tif": "image", ".tiff": "image", ".idx": "idx", ".tar": "tar", ".tgz": "tar", ".txt": "text",
}  # fmt: skip
# What a folder is taken for: tables if there are any, else images, else texts. A picture beside a table is no data.
FAMILIES: tuple[tuple[Format, ...], ...] = (("csv", "parquet", "jsonl", "arrow"), ("image", "idx", "tar"), ("text",))
IDX_NAME = re.compile(r"(^|[-._])idx\d-ubyte$")
IMAGE_STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*")
IDX_START = b"\x00\x00\x08"  # of unsigned bytes; then the number of dimensions
TAR_MARK = slice(257, 262)
PACKED_SUFFIXES: dict[str, Packing] = {".gz": "gzip", ".zst": "zstd"}
PACKED_STARTS: dict[bytes, Packing] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
ARROW_FILE_START, ARROW_STREAM_START = b"ARROW1", b"\xff\xff\xff\xff"
WIDE_TEXT_STARTS = (b"\xff\xfe", b"\xfe\xff")
HEAD_BYTES = 64 * 1024
MOST_PIXELS = 4096


class ReadConfig(Frozen):
    """How files are read. What is not said is found from content and name."""

    format: Literal["csv", "tsv", "parquet", "jsonl", "arrow", "image", "idx", "tar", "text"] | None = Field(
        None, description="of every file, whatever its name"
    )
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="of CSV; none: a tab in .tsv, else ,")
    encoding: str = Field("utf-8", description="of CSV and plain text files")
    image_size: tuple[int, int] | None = Field(
        None, description="height and width that images are brought to, at most 4,096 pixels; IDX files may do without"
    )
    image_colour: bool = Field(
        default=False, description="red, green and blue for each pixel instead of its brightness"
    )
    text_rows: Literal["line", "paragraph", "file"] = Field("line", description="what a row of a plain text file is")
    nulls: list[str] = Field(
        default_factory=list,
        description="texts of CSV and JSON Lines that mean no value, besides the empty one, NaN and NULL",
    )

    @model_validator(mode="after")
    def _images_are_small(self) -> ReadConfig:
        if self.image_size and not (min(self.image_size) >= 1 and math.prod(self.image_size) <= MOST_PIXELS):
            raise ValueError(f"image_size: each pixel becomes a column; at least 1 and at most {MOST_PIXELS:,} of them")
        return self


class FileKind(Frozen):
    """Format and packing of one file; ``delimiter`` is of use for CSV alone."""

    format: Format
    packing: Packing | None = None
    delimiter: str = ","


def is_data(name: str) -> bool:
    """Whether a file in a folder may count, by its name."""
    return format_by_name(name) is not None


def format_by_name(name: str) -> Format | None:
    """What a file is called after."""
    return SUFFIXES.get(_suffix(name))


def detect(path: Path, name: str, config: ReadConfig) -> FileKind:
    """The kind of a local file that was called ``name``.

    Raises:
        DataError: it is empty, or neither content nor name say what it is.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise DataError(f"{name}: the file has no bytes; remove it, or upload it again")
    packing = next((kind for start, kind in PACKED_STARTS.items() if head.startswith(start)), None)
    if packing is None and Path(name).suffix.lower() in PACKED_SUFFIXES:
        raise DataError(f"{name}: called {Path(name).suffix} but not packed so; rename it, or pack it again")
    if head.startswith(WIDE_TEXT_STARTS) and config.encoding == "utf-8":
        raise DataError(f"{name}: the text is UTF-16; convert it to UTF-8, or set preprocess.read.encoding to utf-16")
    suffix = _suffix(name)
    form = _said(config) or (None if packing else _by_content(head)) or SUFFIXES.get(suffix)
    if form is None:
        raise DataError(f"{name}: neither name nor content say what it is; set preprocess.read.format")
    if packing and form in ("parquet", "arrow"):
        raise DataError(f"{name}: {form} files are packed inside, not as a whole; unpack it")
    tabs = config.format == "tsv" or (config.format is None and suffix == ".tsv")
    return FileKind(format=form, packing=packing, delimiter=config.delimiter or ("\t" if tabs else ","))


def _said(config: ReadConfig) -> Format | None:
    return "csv" if config.format == "tsv" else config.format


def _by_content(head: bytes) -> Format | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((ARROW_FILE_START, ARROW_STREAM_START)):
        return "arrow"
    if head.startswith(IMAGE_STARTS):
        return "image"
    if head.startswith(IDX_START):
        return "idx"
    if head[TAR_MARK] == b"ustar":
        return "tar"
    return "jsonl" if head.lstrip().startswith(b"{") else None


def _suffix(name: str) -> str:
    """The suffix that names the format: `.csv` of `rows.csv.gz`."""
    path = Path(name.lower())
    path = path.with_suffix("") if path.suffix in PACKED_SUFFIXES else path
    return ".idx" if IDX_NAME.search(path.name) else path.suffix
