"""Settings of one installation, from the environment (`MODELYARD_*`), `.env` and the secrets folder.

Entry points (a command, a flow, a rank, the endpoint) call `load_settings()` once and pass the parts on;
nothing deeper reads the environment. A part of the stack whose URL is given is used as it is; one whose
URL is absent runs embedded on this machine.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from modelyard.errors import ConfigError
from modelyard.ray_cluster import ray_address

if TYPE_CHECKING:
    import ssl

ENV_PREFIX = "MODELYARD_"
Port = Annotated[int, Field(ge=1024, le=55535, description="gRPC sits 10,000 above the store's ports")]


class Settings(BaseSettings):
    """Every knob of an installation. Names here are upper-cased behind ``MODELYARD_``."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(Path(".modelyard"), description="folder of everything the embedded stack keeps")
    host: str = Field("127.0.0.1", description="address the embedded servers listen on")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    torch_index: str | None = Field(None, description="package index that `make` takes torch from")

    # Object storage
    bucket: str = Field("modelyard", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    s3_endpoint_url: str | None = Field(None, description="an outside S3; empty: the embedded store")
    s3_region: str = "us-east-1"
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    s3_addressing: Literal["path", "virtual"] = "path"
    s3_create_only: Literal["if-none-match", "oss", "cos"] = Field(
        "if-none-match", description="which header makes a put fail when the object exists"
    )
    s3_encryption: Literal["AES256", "aws:kms"] | None = Field(
        None, description="server-side encryption asked for with every write"
    )
    s3_kms_key_id: str | None = None
    s3_ca_bundle: Path | None = Field(None, description="PEM file of a private certificate authority")
    s3_timeout_seconds: float = Field(60, gt=0, description="bound on one request to the store")

    # Data
    sensitive_key: SecretStr | None = Field(None, description="key with which sensitive columns are hashed")

    data_cache_gb: float = Field(
        20, ge=0, description="disk for prepared training rows; what a running training needs is always kept"
    )

    # Tracking and orchestration
    mlflow_tracking_uri: str | None = Field(None, description="an outside MLflow; empty: embedded")
    prefect_api_url: str | None = Field(None, description="an outside Prefect API; empty: embedded")
    work_pool: str = "modelyard"
    devices: int | None = Field(
        None,
        ge=1,
        description="devices that trainings share; empty: this machine's accelerators, or else its processors",
    )

    # The endpoint
    endpoint_url: str | None = Field(None, description="an outside endpoint; empty: embedded")
    endpoint_name: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    endpoint_admin_token: SecretStr | None = None
    endpoint_keys: Literal["auto", "required", "off"] = Field(
        "auto", description="whether requests for predictions need a key; auto: unless it listens on loopback only"
    )
    endpoint_certificate: Path | None = Field(
        None, description="PEM file of its certificate, and of those up to an authority; empty: plain HTTP"
    )
    endpoint_certificate_key: Path | None = Field(
        None, description="PEM file of the certificate's private key; empty: it is in the same file"
    )
    endpoint_ca_bundle: Path | None = Field(
        None, description="PEM file of a private authority by which our own clients trust the endpoint"
    )
    endpoint_signatures: Literal["required", "off"] = Field(
        "required", description="whether it loads signed artifacts alone"
    )
    endpoint_workers: int = Field(1, ge=1, le=64, description="worker processes of each version")
    endpoint_worker_mb: int | None = Field(
        None, ge=64, description="memory at which a worker process is ended, and another started; empty: none"
    )
    endpoint_ray: Annotated[str, AfterValidator(ray_address)] | None = Field(
        None, description="a Ray cluster that has the workers, host:port or auto; empty: they are on this machine"
    )
    endpoint_decimals: int | None = Field(None, ge=0, le=12, description="decimals of numbers in answers; empty: all")
    endpoint_top_k: int | None = Field(
        None, ge=1, description="classes whose own outputs an answer holds, the likeliest; empty: all"
    )
    endpoint_raw_outputs: bool = Field(True, description="whether answers hold the network's own outputs too")
    endpoint_record: float = Field(0, ge=0, le=1, description="share of the answers kept in the prediction log")
    endpoint_redact: str = Field("", description="columns and outputs kept out of it, separated by commas")

    # Networks that others trained
    hub_url: str | None = Field(
        None, description="a hub that networks may be downloaded from, by its URL; empty: nothing is ever downloaded"
    )

    # Signatures
    signing_key: Path | None = Field(
        None, description="private key with which rollout signs; empty: <home>/secrets/signing-key.pem"
    )
    trusted_keys: Path | None = Field(
        None, description="folder of public keys that the endpoint trusts; empty: <home>/trusted-keys"
    )

    # Other places
    regions: Path | None = Field(
        None, description="folder of the regions that rollouts go to, a file `<name>.env` each; empty: <home>/regions"
    )

    # Ports of the embedded stack
    store_port: Port = Field(8333, description="S3 API of the embedded store")
    store_master_port: Port = 9333
    store_volume_port: Port = 9340
    store_filer_port: Port = 8888
    store_admin_port: Port = 23646
    mlflow_port: Port = 5000
    prefect_port: Port = 4200
    endpoint_port: Port = 8090

    @property
    def store_url(self) -> str:
        return self.s3_endpoint_url or f"http://{self.host}:{self.store_port}"

    @property
    def tracking_url(self) -> str:
        return self.mlflow_tracking_uri or f"http://{self.host}:{self.mlflow_port}"

    @property
    def api_url(self) -> str:
        return self.prefect_api_url or f"http://{self.host}:{self.prefect_port}/api"

    @property
    def serving_url(self) -> str:
        scheme = "https" if self.endpoint_certificate else "http"
        return (self.endpoint_url or f"{scheme}://{self.host}:{self.endpoint_port}").rstrip("/")

    @property
    def endpoint_trust(self) -> ssl.SSLContext | bool:
        """By what our own clients (httpx's ``verify``) trust the endpoint: a private authority, or the public ones.

        Raises:
            ConfigError: the authority's file cannot be read.
        """
        if self.endpoint_ca_bundle is None:
            return True
        import ssl

        try:
            return ssl.create_default_context(cafile=self.endpoint_ca_bundle)
        except OSError as failure:  # SSLError is one
            raise ConfigError(
                "MODELYARD_ENDPOINT_CA_BUNDLE", f"{self.endpoint_ca_bundle}: no certificate as PEM ({failure})"
            ) from failure

    @property
    def endpoint_needs_keys(self) -> bool:
        """Whether the endpoint asks for keys."""
        if self.endpoint_keys != "auto":
            return self.endpoint_keys == "required"
        return self.host != "localhost" and not _is_loopback(self.host)

    @property
    def endpoint_headers(self) -> dict[str, str]:
        """What our own clients send to the endpoint: its admin token opens every route."""
        token = self.endpoint_admin_token
        return {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}

    @property
    def redacted_fields(self) -> frozenset[str]:
        """Names of columns and outputs that the prediction log must not hold."""
        return frozenset(name.strip() for name in self.endpoint_redact.split(",") if name.strip())

    @property
    def signing_key_file(self) -> Path:
        return self.signing_key or self.secrets_folder / "signing-key.pem"

    @property
    def trusted_keys_folder(self) -> Path:
        return self.trusted_keys or self.home / "trusted-keys"

    @property
    def data_cache_folder(self) -> Path:
        return self.home / "rows"

    @property
    def regions_folder(self) -> Path:
        return self.regions or self.home / "regions"

    @property
    def secrets_folder(self) -> Path:
        return self.home / "secrets"


def load_settings(**overrides: object) -> Settings:
    """Read the settings of this process.

    Order of precedence: arguments, environment, `.env` of the working directory, the secrets folder
    (`<home>/secrets/modelyard_<name>`, written by `modelyard up` with mode 0600), defaults. `MODELYARD_ENV_FILE`
    names another file than `.env`; the stack sets it, so that its programs read the caller's.

    Raises:
        ConfigError: a value that does not fit, naming its variable.
    """
    dotenv = env_file()
    home = overrides.get("home") or _early("HOME", dotenv) or ".modelyard"
    overrides["home"] = Path(str(home)).expanduser().resolve()
    secrets = Path(str(overrides["home"])) / "secrets"
    try:
        return Settings(
            _env_file=dotenv,
            _secrets_dir=secrets if secrets.is_dir() else None,
            **overrides,  # ty: ignore[invalid-argument-type]
        )
    except ValidationError as invalid:
        first = invalid.errors()[0]
        name = ENV_PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(name, f"{first['msg']} (got {first['input']!r})") from None


def env_file() -> Path:
    """Where `load_settings` looks for settings beside the environment."""
    return Path(os.environ.get(ENV_PREFIX + "ENV_FILE") or ".env").resolve()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name may mean anything
        return False


def _early(name: str, dotenv: Path) -> str | None:
    """A value needed before the settings can be read: where the secrets are."""
    variable = ENV_PREFIX + name
    return os.environ.get(variable) or (dotenv_values(dotenv).get(variable) if dotenv.is_file() else None)
