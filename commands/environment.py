"""The environment variables that make any process a client of this installation, without a secret among them.

Secrets travel by files: `modelyard.settings` reads `<home>/secrets`, and boto, s3fs and MLflow read the AWS files
that `commands.secrets` writes there.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from commands.secrets import AWS_CONFIG, AWS_CREDENTIALS, SECRET_FIELDS
from modelyard.settings import ENV_PREFIX, Settings, env_file

PROJECT = Path(__file__).resolve().parent.parent
RESULTS_BLOCK = "modelyard-results"
# Set on everything the supervisor starts, so that `modelyard down` finds what a killed supervisor left behind.
STACK_MARK = "MODELYARD_STACK"
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # A client that finds no server must say so, not start one of its own.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
}
# These would win over the AWS files below.
AWS_RIVALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)


def client_environment(settings: Settings) -> dict[str, str]:
    """Variables for a process that uses the stack: a flow, a command, a notebook."""
    variables = {
        **QUIET,
        **dict(_own_settings(settings)),
        "PREFECT_API_URL": settings.api_url,
        # Results of flows go to the bucket, as JSON: nothing that Prefect keeps is unpickled.
        "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": f"remote-file-system/{RESULTS_BLOCK}",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "MLFLOW_TRACKING_URI": settings.tracking_url,
        "MLFLOW_S3_ENDPOINT_URL": settings.store_url,
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), settings.host, "localhost"])),
    }
    if not settings.prefect_api_url:
        # An outside server is reached with the person's own Prefect profile; the embedded one has nobody else's.
        variables["PREFECT_HOME"] = str(settings.home / "prefect")
    if settings.s3_access_key and settings.s3_secret_key:
        variables |= {
            "AWS_SHARED_CREDENTIALS_FILE": str(settings.secrets_folder / AWS_CREDENTIALS),
            "AWS_CONFIG_FILE": str(settings.secrets_folder / AWS_CONFIG),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    if settings.s3_ca_bundle:
        variables["AWS_CA_BUNDLE"] = str(settings.s3_ca_bundle.resolve())
    return variables


def apply(settings: Settings) -> None:
    """Make this very process such a client. Call it before Prefect or MLflow are imported."""
    os.environ.update(client_environment(settings))
    if "AWS_SHARED_CREDENTIALS_FILE" in os.environ:
        for rival in AWS_RIVALS:
            os.environ.pop(rival, None)


def program_environment(settings: Settings) -> dict[str, str]:
    """Variables of each program in the supervisor's file."""
    return {
        **client_environment(settings),
        STACK_MARK: str(settings.home),
        "PYTHONUNBUFFERED": "1",
        # Jobs of MLflow's own (judges, scorers) would cost two more processes.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Who waits for devices asks again this soon, and leases on them outlive a restart of the server.
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{settings.home}/prefect/prefect.db",
    }


def supervisor_environment(settings: Settings) -> dict[str, str]:
    """What the supervisor itself inherits: the caller's environment less every secret it may hold."""
    secret = {ENV_PREFIX + field.upper() for field in SECRET_FIELDS}
    inherited = {name: value for name, value in os.environ.items() if name not in secret}
    if settings.s3_access_key and settings.s3_secret_key:
        inherited = {name: value for name, value in inherited.items() if name not in AWS_RIVALS}
    folders = [str(PROJECT), *filter(None, [inherited.get("PYTHONPATH")])]
    inherited["PYTHONPATH"] = os.pathsep.join(folders)
    inherited["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), inherited.get("PATH", os.defpath)])
    return inherited


def _own_settings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Every setting that somebody chose and that is no secret, as variables; folders made absolute."""
    yield ENV_PREFIX + "HOME", str(settings.home)
    yield ENV_PREFIX + "ENV_FILE", str(env_file())
    for field in sorted(settings.model_fields_set - SECRET_FIELDS - {"home"}):
        value = getattr(settings, field)
        if value is None or isinstance(value, SecretStr):
            continue
        yield ENV_PREFIX + field.upper(), str(value.resolve() if isinstance(value, Path) else value)
