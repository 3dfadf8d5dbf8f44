"""`modelyard history`: which version was live with which weight, from when to when, by whom, on what evidence."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from modelyard.ledger import Span
from modelyard.ledger import history as read_history
from modelyard.settings import load_settings
from modelyard.storage import Store


def history(
    model: Annotated[str, typer.Argument(help="Name of a model; empty: all of them.")] = "",
    endpoint: Annotated[str, typer.Option(help="Name of the endpoint; empty: this installation's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs, with all evidence.")] = False,
) -> None:
    """Show who was live when, with which share of the requests, and why. Read from the endpoint's revisions alone."""
    settings = load_settings()
    found = read_history(Store(settings), endpoint or settings.endpoint_name, model)
    if as_json:
        typer.echo(json.dumps([span.model_dump(mode="json") for span in found], indent=1))
        return
    Console(soft_wrap=True, highlight=False).print(_table(found))


def _table(found: list[Span]) -> Table:
    table = Table("model", "version", "weight", box=None, pad_edge=False)
    for name in ("from", "to", "rev"):
        table.add_column(name, no_wrap=True)
    table.add_column("why, by whom")
    for span in found:
        end = _time(span.end) if span.end else "[green]now[/]"
        why = f"{_why(span)} [dim]({span.author})[/]"
        table.add_row(span.model, span.version, f"{span.weight:g} %", _time(span.begin), end, str(span.revision), why)
    return table


def _why(span: Span) -> str:
    """The reason, and the counts behind it."""
    decision = span.decision
    if decision is None or not decision.counts:
        return span.reason
    requests = sum(counts.canary.requests for counts in decision.counts)
    errors = sum(counts.canary.errors for counts in decision.counts)
    failed = [check.sentence for check in decision.checks if not check.passed]
    return f"{span.reason}: {'; '.join(failed) or f'{errors} of {requests:,} canary requests failed, no gate said no'}"


def _time(moment: str) -> str:
    """In local time, to the second; `--json` has the year."""
    return f"{datetime.fromisoformat(moment).astimezone():%b %d %H:%M:%S}"
