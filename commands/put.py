"""`modelyard put`: local files into the bucket, where flows read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modelyard.errors import NotFound
from modelyard.settings import load_settings
from modelyard.storage import Store, split_uri


def put(
    files: Annotated[list[Path], typer.Argument(help="Files to upload.")],
    folder: Annotated[str, typer.Option("--to", help="Folder: s3://bucket/raw/mine, or raw/mine in our own bucket.")],
) -> None:
    """Upload files into a folder of the bucket; one that is there already is replaced."""
    store = Store(load_settings())
    target = folder.rstrip("/") if "://" in folder else f"{store.root}/{folder.strip('/')}"
    split_uri(target)
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise NotFound(f"no such file: {', '.join(missing)}; nothing was uploaded")
    console = Console(soft_wrap=True, highlight=False)
    for file in files:
        store.upload(file, f"{target}/{file.name}")
        console.print(f"{target}/{file.name}  {file.stat().st_size:,} bytes")
