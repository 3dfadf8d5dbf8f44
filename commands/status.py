"""`modelyard status`: every part of the stack, asked now."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from commands import stack
from commands.stack import PartStatus
from modelyard.settings import load_settings

STYLES = {"ready": "green", "ready (outside)": "green", "stopped": "dim"}


def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show each part: state, process, address, memory, uptime. Exit status 1 unless all are ready."""
    parts = stack.status(load_settings())
    if as_json:
        typer.echo(json.dumps([part.as_json() for part in parts], indent=2))
    else:
        console = Console()
        # A pipe has no width of its own; half an address helps nobody.
        (console if console.is_terminal else Console(width=200)).print(_table(parts))
    if not all(part.state.startswith("ready") for part in parts):
        raise typer.Exit(1)


def _table(parts: list[PartStatus]) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in ("part", "state", "pid", "address", "RSS", "uptime", ""):
        table.add_column(heading, justify="right" if heading in {"pid", "RSS", "uptime"} else "left")
    for part in parts:
        table.add_row(
            part.part,
            f"[{STYLES.get(part.state, 'red')}]{part.state}[/]",
            str(part.pid or ""),
            part.address,
            f"{part.rss_bytes / 2**20:.0f} MB" if part.rss_bytes else "",
            str(timedelta(seconds=round(part.uptime_seconds))) if part.uptime_seconds else "",
            part.problem or "",
        )
    total = sum(part.rss_bytes or 0 for part in parts)
    table.add_row("", "", "", "", f"[bold]{total / 2**20:.0f} MB[/]" if total else "", "", "")
    return table
