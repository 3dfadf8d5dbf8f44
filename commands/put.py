"""`modelyard put`: local files and folders into the bucket, where flows read them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modelyard.catalog import file_sha256
from modelyard.errors import ConfigError, DigestMismatch, NotFound
from modelyard.settings import load_settings
from modelyard.storage import Store, split_uri

SHA256 = "sha256"  # the attribute that an uploaded object keeps


def put(
    files: Annotated[list[Path], typer.Argument(help="Files to upload, or folders with all that is below them.")],
    folder: Annotated[str, typer.Option("--to", help="Folder: s3://bucket/raw/mine, or raw/mine in our own bucket.")],
) -> None:
    """Upload files into a folder of the bucket. What is there with the same bytes is skipped, a large file's parts
    included: a broken upload goes on where it was."""
    store = Store(load_settings())
    target = folder.rstrip("/") if "://" in folder else f"{store.root}/{folder.strip('/')}"
    split_uri(target)
    console = Console(soft_wrap=True, highlight=False)
    for file, name in _listed(files):
        uploaded = ingest(store, file, f"{target}/{name}")
        console.print(f"{target}/{name}  {file.stat().st_size:,} bytes{'' if uploaded else ', there already'}")


def ingest(store: Store, file: Path, uri: str) -> bool:
    """Upload a file unless the object holds its bytes already; what was sent is read back and compared.

    Returns:
        Whether anything was sent.

    Raises:
        DigestMismatch: what came back is something else.
    """
    digest = file_sha256(file)
    if _is_there(store, uri, file.stat().st_size, digest):
        return False
    store.upload_resumably(file, uri, digest, {SHA256: digest})
    arrived = _digest(store, uri)
    if arrived != digest:
        store.delete([uri])
        raise DigestMismatch(uri, digest, arrived)
    return True


def _listed(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """Every file, and its name in the bucket: below a folder with the path from there, the folder's name first."""
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise NotFound(f"no such file: {', '.join(missing)}; nothing was uploaded")
    found = []
    for file in files:
        below = sorted(path for path in file.rglob("*") if path.is_file()) if file.is_dir() else [file]
        start = file.absolute().parent
        found += [(path, path.absolute().relative_to(start).as_posix()) for path in below]
    names = [name for _, name in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError("files", f"{twice[0]} would be written twice; upload them into folders of their own")
    return found


def _is_there(store: Store, uri: str, size: int, digest: str) -> bool:
    try:
        if store.head(uri).size != size:
            return False
        # An object that somebody else put there says nothing of itself: then its bytes have to.
        said = store.attributes(uri).get(SHA256)
    except NotFound:
        return False
    return (said or _digest(store, uri)) == digest


def _digest(store: Store, uri: str) -> str:
    digest = hashlib.sha256()
    for chunk in store.get_stream(uri):
        digest.update(chunk)
    return digest.hexdigest()
