"""`modelyard audit`: who changed keys, signatures and the endpoint, when and why."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from modelyard.audit import entries
from modelyard.settings import load_settings
from modelyard.storage import Store


def audit(
    days: Annotated[int, typer.Option(help="How far to look back.", min=1)] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what was changed beside the versions: keys, signatures, admin calls. `modelyard history` shows the versions."""
    since = datetime.now(UTC) - timedelta(days=days - 1)
    found = list(entries(Store(load_settings()), f"{since:%Y-%m-%d}"))
    if as_json:
        typer.echo(json.dumps([entry.model_dump() for entry in found], indent=1))
        return
    table = Table("when", "who", "what", "subject", "why", box=None, pad_edge=False)
    for entry in found:
        when = f"{datetime.fromisoformat(entry.at).astimezone():%Y-%m-%d %H:%M:%S}"
        table.add_row(when, f"{entry.who} on {entry.where}", entry.what, entry.subject, entry.why)
    Console(soft_wrap=True, highlight=False).print(table)
