"""`modelyard signing`: the key that rollout signs with, and the keys that the endpoint trusts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer
from rich.console import Console

from modelyard.artifacts import ArtifactRef
from modelyard.audit import AuditLog
from modelyard.catalog import Catalog
from modelyard.errors import ConfigError
from modelyard.naming import find_artifact
from modelyard.settings import Settings, load_settings
from modelyard.signing import keys
from modelyard.signing.sign import sign
from modelyard.storage import Store
from modelyard.tracking import Tracker


def signing(
    action: Annotated[
        Literal["list", "rotate", "sign", "distrust"],
        typer.Argument(help="list the keys; rotate: make a new one; sign an artifact by hand; distrust a key."),
    ],
    name: Annotated[
        str, typer.Argument(help="sign: digest, URI, model@alias or model/version; distrust: start of the key's id.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "",
) -> None:
    """Show and change what signatures are made and checked with. The endpoint follows without a restart."""
    settings = load_settings()
    console = Console(soft_wrap=True, highlight=False)
    if (action in ("sign", "distrust")) != bool(name):
        raise ConfigError("NAME", f"`modelyard signing {action}` takes {'no' if name else 'a'} name")
    if action != "list":
        AuditLog(settings).note(f"signing: {action}", name, why=reason)
    if action == "list":
        _list(settings, console)
    elif action == "rotate":
        made = keys.create_key(settings.signing_key_file, settings.trusted_keys_folder)
        console.print(f"{made}\nsigns from now on. What earlier keys signed stays valid while they are trusted.")
    elif action == "distrust":
        gone = keys.distrust(name, settings.trusted_keys_folder)
        console.print(f"{gone}\nis not trusted any more: what it alone signed is not loaded again.")
    else:
        _sign(settings, name, console)


def _list(settings: Settings, console: Console) -> None:
    signs = ""
    if settings.signing_key_file.is_file():
        signs = keys.key_id(keys.private_key(settings.signing_key_file).public_key())
    files = keys.key_files(settings.trusted_keys_folder)
    if not files:
        console.print(f"there is no trusted key in {settings.trusted_keys_folder}")
    for path in files:
        since = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        console.print(f"{path.stem}  trusted since {since:%Y-%m-%d %H:%M}{'  signs' if path.stem == signs else ''}")
    if signs and not (settings.trusted_keys_folder / f"{signs}.pem").is_file():
        console.print(f"{signs}  signs, but is not trusted here")


def _sign(settings: Settings, name: str, console: Console) -> None:
    """What was named; of a registered version its verdict too, as the endpoint loads both."""
    catalog, tracker = Catalog(Store(settings)), Tracker(settings)
    ref = find_artifact(catalog, tracker, name)
    is_registered = "://" not in name and ("@" in name or "/" in name)
    known = tracker.versions() if is_registered else []
    verdicts = [version.verdict for version in known if version.artifact.digest == ref.digest]
    unique: dict[str, ArtifactRef] = {each.digest: each for each in (ref, *verdicts)}
    for each in unique.values():
        console.print(sign(catalog.store, each, settings.signing_key_file))
