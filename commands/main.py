"""The command line. Each command is one function in the file of its name; a new one is one import and one line here."""

from __future__ import annotations

import logging
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from commands.audit import audit
from commands.clean import clean
from commands.down import down
from commands.history import history
from commands.kserve import kserve
from commands.logs import logs
from commands.predict import predict
from commands.put import put
from commands.replace import replace
from commands.rollback import rollback
from commands.run import run
from commands.signing import signing
from commands.status import status
from commands.trace import trace
from commands.up import up
from modelyard.errors import ModelyardError
from modelyard.settings import load_settings


class _OneParagraph(TyperGroup):
    """Ends a command that failed on purpose with one paragraph and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModelyardError as failure:
            if _wants_traceback():
                raise
            Console(stderr=True, soft_wrap=True).print(str(failure), style="red", markup=False, highlight=False)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_OneParagraph,
    help="From a dataset in object storage to a served, versioned, watched model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up)
app.command()(down)
app.command()(status)
app.command()(logs)
app.command()(run)
app.command()(rollback)
app.command()(history)
app.command()(replace)
app.command()(put)
app.command()(predict)
app.command()(kserve)
app.command()(trace)
app.command()(signing)
app.command()(audit)
app.command()(clean)


def _wants_traceback() -> bool:
    try:
        level = load_settings().log_level
    except ModelyardError:
        return False
    return logging.getLevelNamesMapping()[level] <= logging.DEBUG


if __name__ == "__main__":
    app()
