"""`modelyard kserve`: a registered version as an InferenceService of KServe, which then splits the requests.

Each version gets an endpoint name of its own, with a ledger that names this version and no other. So KServe's revisions
are Modelyard's versions, and its `canaryTrafficPercent` is the canary's weight. Spec: serving.kserve.io/v1beta1.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from modelyard.catalog import Catalog
from modelyard.errors import ConfigError, NotFound, SignatureRefused
from modelyard.model_package import PACKAGE_FILE, PackageSpec
from modelyard.revisions import Decision, ModelState, Revision, ServedVersion, propose_revision
from modelyard.settings import Settings, load_settings
from modelyard.signing.verify import SIGNATURES_FOLDER
from modelyard.storage import Store
from modelyard.tracking import RegisteredVersion, Tracker

PORT = 8080  # where KServe's ingress looks for a container of one's own
TRUSTED_KEYS = "/etc/modelyard/trusted-keys"


def kserve(
    name: Annotated[str, typer.Argument(help="model@alias or model/version.")] = "digits@champion",
    image: Annotated[str, typer.Option(help="Container image with Modelyard installed.")] = "modelyard:latest",
    canary_percent: Annotated[
        int | None,
        typer.Option(
            help="Share of the requests for this version; the one applied before keeps the rest.", min=0, max=100
        ),
    ] = None,
    credentials: Annotated[
        str,
        typer.Option(help="Secret of the cluster with MODELYARD_S3_ACCESS_KEY, MODELYARD_S3_SECRET_KEY and the like."),
    ] = "modelyard",
    trusted_keys: Annotated[
        str, typer.Option(help="Secret of the cluster with the public keys (*.pem) of those who sign.")
    ] = "modelyard-trusted-keys",
) -> None:
    """Print the InferenceService that serves a version, for `kubectl apply -f -`; its ledger is written first."""
    settings = load_settings()
    if not settings.s3_endpoint_url:
        raise ConfigError(
            "MODELYARD_S3_ENDPOINT_URL", "the embedded store serves this machine alone; a cluster needs one of its own"
        )
    catalog, version = Catalog(Store(settings)), _find(Tracker(settings), name)
    endpoint = _pin(settings, catalog, version)
    document = inference_service(
        settings,
        version,
        endpoint,
        image=image,
        canary_percent=canary_percent,
        credentials=credentials,
        trusted_keys=trusted_keys,
    )
    print(yaml.safe_dump(document, sort_keys=False), end="")


def inference_service(
    settings: Settings,
    version: RegisteredVersion,
    endpoint: str,
    *,
    image: str,
    canary_percent: int | None,
    credentials: str,
    trusted_keys: str,
) -> dict[str, Any]:
    """The document."""
    environment = {
        "MODELYARD_HOME": "/tmp/modelyard",  # noqa: S108 (of the container)
        "MODELYARD_HOST": "0.0.0.0",  # noqa: S104 (of the container)
        "MODELYARD_ENDPOINT_PORT": str(PORT),
        "MODELYARD_ENDPOINT_NAME": endpoint,
        "MODELYARD_ENDPOINT_KEYS": "off",  # the cluster's ingress decides who gets in
        "MODELYARD_TRUSTED_KEYS": TRUSTED_KEYS,
        "MODELYARD_BUCKET": settings.bucket,
        "MODELYARD_S3_ENDPOINT_URL": settings.s3_endpoint_url,
        "MODELYARD_S3_REGION": settings.s3_region,
        "MODELYARD_S3_ADDRESSING": settings.s3_addressing,
    }
    container = {
        "name": "kserve-container",
        "image": image,
        "command": ["python", "-m", "modelyard.serve"],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "envFrom": [{"secretRef": {"name": credentials}}],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}},
        "livenessProbe": {"httpGet": {"path": "/livez", "port": PORT}},
        "volumeMounts": [{"name": "trusted-keys", "mountPath": TRUSTED_KEYS, "readOnly": True}],
    }
    predictor: dict[str, Any] = {"canaryTrafficPercent": canary_percent} if canary_percent is not None else {}
    predictor |= {
        "containers": [container],
        "volumes": [{"name": "trusted-keys", "secret": {"secretName": trusted_keys}}],
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": version.model_name.replace("_", "-"),
            "annotations": {
                "modelyard/model-version": version.version,
                "modelyard/artifact-digest": version.artifact.digest,
            },
        },
        "spec": {"predictor": predictor},
    }


def _find(tracker: Tracker, name: str) -> RegisteredVersion:
    model, at, alias = name.partition("@")
    if at:
        found = tracker.version_by_alias(model, alias)
        if found is None:
            raise NotFound(f"model {model!r} has no version with the alias {alias!r}")
        return found
    model, slash, number = name.partition("/")
    if not slash:
        raise NotFound(f"{name!r} is neither model@alias nor model/version")
    return tracker.version(model, number)


def _pin(settings: Settings, catalog: Catalog, version: RegisteredVersion) -> str:
    """Have an endpoint name of its own serve a version and no other; returns that name.

    Raises:
        SignatureRefused: no rollout has let it through.
    """
    store = catalog.store
    for ref in (version.artifact, version.verdict):
        if not any(store.list(f"{ref.uri}/{SIGNATURES_FOLDER}")):
            raise SignatureRefused(
                f"{ref} is unsigned, so no endpoint would load it: roll it out, or sign it with `modelyard signing sign`"
            )
    form = PackageSpec.model_validate_json(catalog.read(version.artifact, PACKAGE_FILE)).default_form
    served = ServedVersion(version=version.version, artifact=version.artifact, form=form, verdict=version.verdict)
    wanted = {version.model_name: ModelState(versions=[served])}

    def change(current: Revision) -> dict[str, ModelState] | None:
        return None if current.models == wanted else wanted

    endpoint = f"{settings.endpoint_name}-{version.model_name.replace('_', '-')}-{version.version}"
    propose_revision(
        store,
        endpoint,
        change,
        reason=f"{version.model_name} version {version.version} for KServe",
        author="modelyard kserve",
        decision=Decision(model=version.model_name, action="switch", version=version.version),
    )
    return endpoint
