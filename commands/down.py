"""`modelyard down`: end every process of the embedded stack."""

from __future__ import annotations

import time

from rich.console import Console

from commands import stack
from modelyard.settings import load_settings


def down() -> None:
    """Stop the embedded stack; its data stays. What does not stop in time is killed."""
    console = Console(highlight=False)
    began = time.monotonic()
    with console.status("stopping"):
        stack.down(load_settings())
    console.print(f"[bold]down[/] in {time.monotonic() - began:.1f} s")
