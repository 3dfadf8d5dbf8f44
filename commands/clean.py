"""`modelyard clean`: take the embedded stack down and delete its folder."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from commands import stack
from modelyard.settings import load_settings


def clean(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Stop the embedded stack and delete its data: bucket, runs, models, secrets."""
    settings = load_settings()
    if not yes:
        typer.confirm(f"Delete {settings.home} with everything in it?", abort=True)
    stack.clean(settings)
    Console(highlight=False, soft_wrap=True).print(f"{settings.home} is gone")
