"""`modelyard logs`: what the parts of the stack said, and go on saying."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from commands import stack
from commands.parts import named
from commands.readiness import tail
from modelyard.settings import load_settings

POLL_SECONDS = 0.3


def logs(
    part: Annotated[str | None, typer.Argument(help="One part; all of them if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    num_lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many to begin with.")] = 40,
) -> None:
    """Print the last lines of the parts' logs."""
    settings = load_settings()
    chosen = named([part] if part else [])
    tails = [_Tail(stack.log_path(settings, each), f"{each.name:<9}" if len(chosen) > 1 else "") for each in chosen]
    for each in tails:
        each.print_last(num_lines)
    while follow:
        time.sleep(POLL_SECONDS)
        for each in tails:
            each.print_new()


class _Tail:
    """One log file, followed across rotations."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._position = path.stat().st_size if path.is_file() else 0

    def print_last(self, num_lines: int) -> None:
        self._print(tail(self._path, num_lines) if num_lines else "")

    def print_new(self) -> None:
        if not self._path.is_file():
            return
        size = self._path.stat().st_size
        if size < self._position:  # rotated: a fresh file took the name
            self._position = 0
        with self._path.open("rb") as file:
            file.seek(self._position)
            complete, newline, _ = file.read(size - self._position).rpartition(b"\n")
        self._position += len(complete) + len(newline)
        self._print(complete.decode(errors="replace"))

    def _print(self, text: str) -> None:
        for line in text.splitlines():
            typer.echo(f"{self._prefix}{line}")
