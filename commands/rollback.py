"""`modelyard rollback`: back to an earlier version."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from commands import environment
from commands.run import RunFailed, within_reach
from modelyard.settings import load_settings
from modelyard.storage import Store


def rollback(
    preset: Annotated[
        str, typer.Argument(help="The preset whose model goes back: a name, or path or s3:// URI of a YAML file.")
    ] = "digits",
    version: Annotated[str, typer.Option(help="Any version that served before; empty: the one before.")] = "",
    deployment: Annotated[str, typer.Option(help="The deployment to trigger.")] = "rollback/digits",
    timeout: Annotated[float, typer.Option(help="Seconds to follow the run.", min=1)] = 300,
) -> None:
    """Have the endpoint serve an earlier version, and end a rollout under way. The next lifecycle run may go forward again."""
    settings = load_settings()
    environment.apply(settings)
    console = Console(soft_wrap=True, highlight=False)
    from modelyard.presets import load_preset  # with all configs: `--help` need not wait for them

    store = Store(settings)
    load_preset(preset, store)  # a wrong one is refused here, before a run is created for it
    preset = within_reach(preset, store)
    from commands.following import follow  # imports Prefect: 2 s that `--help` need not wait for

    outcome = follow(settings, deployment, {"preset": preset, "version": version}, timeout, console)
    if outcome.problem:
        raise RunFailed(outcome.problem)
    console.print(f"{outcome.result['release']['model_name']}: {outcome.result['headline']}")
