"""Images as people keep them: folders by class, archives, IDX; real ones from installed packages."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn import datasets

from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS, Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess.formats import ReadConfig
from modelyard.preprocess.image_rows import MOST_DECODED, decoded
from tests.workbench import ORIGIN, upload

READ: dict[str, Any] = {"image_size": [8, 8]}
BASE: dict[str, Any] = {"target": "label", "keep": ["file"], "transform": {"scaling": "image"}}
DIGITS = datasets.load_digits()
COUNT = 240
PIXELS = (DIGITS.images[:COUNT] * 15).astype(np.uint8)
LABELS = DIGITS.target[:COUNT].astype(np.uint8)
NAMES = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = {
    f"{label}/{number:04d}.png": png(pixels) for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True))
}


def tar(members: Mapping[str, bytes | None], mode: str = "w") -> bytes:
    """An archive; a link that leads out where there is no content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # ty: ignore[no-matching-overload]  (modes of tarfile)
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body or b"")
            info.type, info.linkname = (tarfile.REGTYPE, "") if body is not None else (tarfile.SYMTYPE, "/etc/passwd")
            archive.addfile(info, io.BytesIO(body or b""))
    return buffer.getvalue()


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return gzip.compress(head + values.astype(np.uint8).tobytes())


def run(catalog: Catalog, files: Mapping[str, bytes], **fields: Any) -> Product:
    config = PreprocessConfig.model_validate(BASE | {"read": READ} | fields)
    return preprocess(catalog, snapshot(catalog, upload(catalog.store, files), ORIGIN).ref, config, ORIGIN)


def quarantine(catalog: Catalog, product: Product) -> list[tuple]:
    frame = pl.read_parquet(io.BytesIO(catalog.read(product.ref, "rejected/000000.parquet")))
    return frame.select("file", "row", "column", "reason", "value").rows()


IN_TARS = {f"{path.rpartition('/')[2].removesuffix('.png')}": path for path in PNGS}
FORMS: dict[str, dict[str, bytes]] = {
    "folders": PNGS,
    "tar by folder": {"a.tar": tar(dict(list(PNGS.items())[:150])), "b.tar.gz": tar(dict(list(PNGS.items())[150:]), "w:gz")},
    "tar with sidecars": {
        "all.tar": tar({
            name: body for stem, path in IN_TARS.items()
            for name, body in ((f"{stem}.cls", path.partition("/")[0].encode()), (f"{stem}.png", PNGS[path]))
        })
    },
    "idx": {"train-images-idx3-ubyte.gz": idx(PIXELS), "train-labels-idx1-ubyte.gz": idx(LABELS)},
}  # fmt: skip


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_has_the_same_rows(catalog: Catalog, tmp_path: Path, form: str):
    """Real handwritten digits: each image is a row of 64 pixels with its class, whatever it was kept in."""
    product = run(catalog, FORMS[form], partition_bytes=12_000)
    dataset = Dataset.fetch(catalog, product.ref, tmp_path, SPLITS)
    rows = pd.concat([frame for split in SPLITS for frame in dataset.frames(split)])
    assert product.manifest.content.facts["read"] == COUNT
    expected = pd.DataFrame(PIXELS.reshape(COUNT, 64), columns=NAMES, dtype=float).assign(label=LABELS.astype(int))
    order = [*NAMES, "label"]
    pd.testing.assert_frame_equal(
        rows[order].sort_values(order, ignore_index=True), expected.sort_values(order, ignore_index=True)
    )
    assert rows["file"].nunique() == COUNT
    features, targets = dataset.load("train")
    assert (features.shape[1], features.max(), set(targets)) == (64, np.float32(PIXELS.max() / 255), set(range(10)))


def test_what_is_no_image_is_refused_with_its_file(catalog: Catalog):
    """Loose and in an archive: cut off, something else, a link that leads out, without a class; the others stay."""
    good = dict(list(PNGS.items())[:200])
    bad = {"3/cut.png": PNGS["0/0000.png"][:60], "4/text.png": b"<svg/>", "none.png": PNGS["1/0001.png"]}
    product = run(catalog, good | bad)
    assert sorted((line[0], line[1], line[3][:13]) for line in quarantine(catalog, product)) == [
        ("3/cut.png", 1, "no whole imag"), ("4/text.png", 1, "no image of a"), ("none.png", 1, "null"),
    ]  # fmt: skip
    assert product.manifest.content.facts["read"] == 203
    more = {"../../5/outside.png": png(255 - PIXELS[0]), "7/link.png": None}
    archived = run(catalog, {"all.tar": tar(good | bad | more)})
    lines = {line[4]: line[3] for line in quarantine(catalog, archived)}
    assert lines["7/link.png"] == "no image: a link or device"
    assert lines["4/text.png"] == "no image of a known form"
    assert archived.manifest.content.facts["read"] == 205
    assert archived.manifest.content.facts["duplicates"] == 0


REFUSED: dict[str, tuple[dict[str, bytes], dict[str, Any], type[Exception], str]] = {
    "no size": ({"0/0000.png": PNGS["0/0000.png"]}, {"read": {}}, ConfigError, "image_size: say the height and width"),
    "a cut archive": ({"all.tar": tar(PNGS)[:100_900]}, {}, DataError, r"all\.tar: cannot be read as tar"),
    "an archive without its end": ({"all.tar": tar(PNGS)[: 1024 * COUNT]}, {}, DataError, r"all\.tar: cut off"),
    "a cut gz": ({"all.tar.gz": FORMS["tar by folder"]["b.tar.gz"][:-900]}, {}, DataError, r"all\.tar\.gz: cannot be"),
    "no labels": ({"images-idx3-ubyte.gz": idx(PIXELS)}, {}, DataError, r"would be called labels-idx1-ubyte\.gz"),
    "no images": ({"labels-idx1-ubyte.gz": idx(LABELS)}, {}, DataError, r"the images that these labels"),
    "labels of others": (
        {"images-idx3-ubyte.gz": idx(PIXELS), "labels-idx1-ubyte.gz": idx(LABELS[:9])}, {}, DataError, "240 images, but 9 labels"),
    "a cut idx": (
        {"images.idx3-ubyte": gzip.decompress(idx(PIXELS))[:-1], "labels.idx1-ubyte": idx(LABELS)}, {}, DataError,
        "cut off after image 239 of 240"),
    "numbers of another kind": (
        {"images-idx3-ubyte.gz": gzip.compress(bytes([0, 0, 13, 3]) + bytes(12)), "labels-idx1-ubyte.gz": idx(LABELS)},
        {}, DataError, "no IDX file of unsigned bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_read_is_said(catalog: Catalog, case: str):
    """File, fault, what to do."""
    files, fields, error, sentence = REFUSED[case]
    with pytest.raises(error, match=sentence):
        run(catalog, files, **fields)


def test_photographs_are_brought_to_size():
    """Real ones, grey and in colour; turned as their camera says; a 16 bit one keeps its brightness."""
    china = datasets.load_sample_image("china.jpg")
    encoded = (Path(datasets.__file__).parent / "images/china.jpg").read_bytes()
    colour = decoded(encoded, ReadConfig(image_size=(20, 30), image_colour=True))
    assert isinstance(colour, np.ndarray)
    assert colour.shape == (20, 30, 3)
    np.testing.assert_allclose(colour.mean(axis=(0, 1)), china.mean(axis=(0, 1)), atol=2)
    logo = decoded((Path(mpl.get_data_path()) / "sample_data/logo2.png").read_bytes(), ReadConfig(image_size=(4, 9)))
    assert isinstance(logo, np.ndarray)
    assert logo.shape == (4, 9)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(china).save(buffer, "JPEG", exif=exif)
    turned = decoded(buffer.getvalue(), ReadConfig(image_size=(30, 20), image_colour=True))
    assert isinstance(turned, np.ndarray)
    assert np.abs(turned.astype(int) - np.rot90(colour, -1).astype(int)).mean() < 8
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(buffer, "PNG")
    deep = decoded(buffer.getvalue(), ReadConfig(image_size=(2, 2)))
    assert np.array_equal(deep, np.full((2, 2), 0x80))


def test_a_bomb_is_not_decoded():
    """A small file that says it is huge is refused by its head."""
    small = PNGS["0/0000.png"]
    head = b"IHDR" + struct.pack(">II", 40_000, 40_000) + small[24:29]
    bomb = small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]
    assert MOST_DECODED < 40_000**2
    reason = decoded(bomb, ReadConfig(image_size=(8, 8)))
    assert isinstance(reason, str)
    assert "too large" in reason or "exceeds limit" in reason


def test_too_many_pixels_are_refused():
    """Each is a column."""
    with pytest.raises(ValidationError, match="at most 4,096"):
        ReadConfig(image_size=(100, 100))


def test_a_picture_beside_a_table_is_no_data(catalog: Catalog):
    """What a folder holds is told by its tables, if there are any."""
    uri = upload(catalog.store, {"rows.csv": b"a,b\n1,2\n", "plot.png": PNGS["0/0000.png"], "NOTES.txt": b"hello"})
    assert snapshot(catalog, uri, ORIGIN).manifest.content.facts["files"] == 1
