"""Other places that serve the same models: each its own bucket and its own endpoint.

    <regions folder>/eu.env      MODELYARD_BUCKET, MODELYARD_S3_ENDPOINT_URL, MODELYARD_ENDPOINT_URL, ...

A region's file holds settings as `.env` does, and nothing of the environment gets in. What it does not name (credentials
of the store, say) is the home installation's.
"""

from __future__ import annotations

from pathlib import Path

from dotenv import dotenv_values
from pydantic import ValidationError

from modelyard.errors import ConfigError
from modelyard.settings import ENV_PREFIX, Settings

NEEDED = ("bucket", "s3_endpoint_url", "endpoint_url")
ALLOWED = frozenset(
    {*NEEDED, "endpoint_name", "endpoint_admin_token", *(name for name in Settings.model_fields if name.startswith("s3_"))}
)  # fmt: skip


def region_names(home: Settings) -> list[str]:
    """Every region that has a file."""
    return sorted(file.stem for file in home.regions_folder.glob("*.env"))


def region_settings(home: Settings, name: str) -> Settings:
    """The settings of an installation whose store and endpoint are those of a region.

    Raises:
        ConfigError: there is no such region, others may read its file, or the file says what does not fit.
    """
    path = home.regions_folder / f"{name}.env"
    given = _read(path, region_names(home), name)
    if missing := [ENV_PREFIX + field.upper() for field in NEEDED if not given.get(field)]:
        raise ConfigError(f"region {name}", f"{path} does not say {', '.join(missing)}")
    inherited = {field: getattr(home, field) for field in Settings.model_fields}
    try:
        return Settings(_env_file=None, _secrets_dir=None, **inherited | given)  # ty: ignore[invalid-argument-type]
    except ValidationError as invalid:
        first = invalid.errors()[0]
        variable = ENV_PREFIX + "_".join(map(str, first["loc"])).upper()
        raise ConfigError(f"region {name}", f"{path}: {variable}: {first['msg']}") from None


def _read(path: Path, known: list[str], name: str) -> dict[str, str]:
    """The fields that a region's file names."""
    if name not in known:
        raise ConfigError("rollout.regions", f"there is no {path}; known regions: {', '.join(known) or 'none'}")
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"region {name}", f"{path} may hold credentials, and others can read it: chmod 600 {path}")
    fields = {key.removeprefix(ENV_PREFIX).lower(): value or "" for key, value in dotenv_values(path).items()}
    if unknown := sorted(set(fields) - ALLOWED):
        names = ", ".join(ENV_PREFIX + field.upper() for field in unknown)
        raise ConfigError(
            f"region {name}", f"{path} sets {names}; a region has a store and an endpoint of its own alone"
        )
    return fields
