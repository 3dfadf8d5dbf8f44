"""`modelyard trace`: from what the endpoint answered, or any artifact, back to the data and the commit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from commands.lineage import Step, Walk
from modelyard.catalog import Catalog
from modelyard.settings import load_settings
from modelyard.storage import Store
from modelyard.tracking import Tracker


def trace(
    name: Annotated[
        str, typer.Argument(help="Request id, digest (or its start), URI, model@alias or model/version.")
    ] = "digits@champion",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Walk back from an answer or an artifact to the runs, the data and the commit; say what is missing on the way."""
    settings = load_settings()
    steps = list(Walk(settings, Catalog(Store(settings)), Tracker(settings)).steps(name))
    missing = sum(len(step.missing) for step in steps)
    if as_json:
        print(json.dumps({"complete": not missing, "steps": [step.model_dump() for step in steps]}, indent=1))
        return
    # A pipe has no width: long lines must reach it whole.
    console = Console(highlight=False, width=None if Console().is_terminal else 400)
    console.print(_table(steps))
    console.print("nothing is missing" if not missing else f"[red]{missing} missing on the way[/]")


def _table(steps: Sequence[Step]) -> Table:
    """A step a block: its first line names it, each further line says one thing."""
    table = Table("step", "", box=None, padding=(0, 2, 0, 0))
    for step in steps:
        table.add_row(f"[bold]{step.what}[/]", escape(step.name))
        for fact, value in step.facts.items():
            if value not in (None, []):
                table.add_row(f"  [dim]{fact}[/]", escape(", ".join(value) if isinstance(value, list) else str(value)))
        for sentence in step.missing:
            table.add_row("  [red]missing[/]", f"[red]{escape(sentence)}[/]")
    return table
