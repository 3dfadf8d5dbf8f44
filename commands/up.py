"""`modelyard up`: start the embedded stack and wait until it works."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from commands import stack
from commands.parts import named
from commands.stack import PartReady
from modelyard.settings import load_settings


def up(
    parts: Annotated[
        list[str] | None, typer.Argument(help="Only these parts: store, mlflow, prefect, worker, endpoint.")
    ] = None,
) -> None:
    """Start the embedded stack and wait until every part works; does nothing where it is up already."""
    console = Console(soft_wrap=True, highlight=False)
    began = time.monotonic()
    with console.status("starting"):
        stack.up(load_settings(), named(parts or []), lambda ready: _print_ready(console, ready))
    console.print(f"[bold green]up[/] in {time.monotonic() - began:.1f} s")


def _print_ready(console: Console, ready: PartReady) -> None:
    note = "was up" if ready.was_running else f"ready in {ready.seconds:.1f} s"
    console.print(f"[green]●[/] {ready.part.name:<9} {ready.address:<32} {note}")
