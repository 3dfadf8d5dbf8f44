"""The way back from an answer or an artifact, step by step, and what is missing on it.

    response -> endpoint revision -> registry version -> package -> verdict -> training -> data set -> snapshot

Each artifact brings its commit, its Prefect flow run and its MLflow run along. A step that cannot be taken does not
stop the others: it says what is missing and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
from pydantic import Field

from commands.readiness import prefect_headers
from modelyard import request_ids
from modelyard.artifacts import ArtifactKind, ArtifactRef, Frozen, Manifest
from modelyard.catalog import Catalog
from modelyard.errors import ModelyardError, NotFound, TrackerUnavailable
from modelyard.naming import find_artifact
from modelyard.request_ids import RequestId
from modelyard.revisions import Revision, ServedVersion, read_revision
from modelyard.settings import Settings
from modelyard.signing.verify import SIGNATURES_FOLDER
from modelyard.tracking import RegisteredVersion, Tracker

REQUEST_SECONDS = 5.0
NAMES: dict[ArtifactKind, str] = {"compressed": "package", "model": "training", "dataset": "data set"}
SIGNED: tuple[ArtifactKind, ...] = ("compressed", "verdict")


class Step(Frozen):
    """One step of the way: what it is, its name, what is known of it, and a sentence for each thing that is missing."""

    what: str
    name: str
    facts: dict[str, Any] = Field(default_factory=dict)
    missing: list[str] = Field(default_factory=list)


class Walk:
    """Walks back. Servers that do not answer are asked once."""

    def __init__(self, settings: Settings, catalog: Catalog, tracker: Tracker) -> None:
        self._settings = settings
        self._catalog = catalog
        self._tracker = tracker
        self._away: dict[str, str] = {}

    def steps(self, name: str) -> Iterator[Step]:
        """From a request id, a digest or its start, a URI, model@alias or model/version.

        Raises:
            NotFound: no artifact has this name.
        """
        if request := request_ids.parse(name):
            yield from self._from_response(request, name)
            return
        ref = find_artifact(self._catalog, self._tracker, name)
        yield from self._revisions_with(ref)
        known, problem = self._registered()
        mine = [version for version in known if ref.digest in (version.artifact.digest, version.verdict.digest)]
        if ref.kind in SIGNED:
            yield from self._registrations(mine, problem)
        verdicts = [version.verdict for version in mine if version.artifact.digest == ref.digest]
        yield from self._artifacts([ref, *verdicts])

    # -- what served ----------------------------------------------------------------------------------

    def _from_response(self, request: RequestId, name: str) -> Iterator[Step]:
        said = {"endpoint": request.endpoint, "model": request.model, "version": request.version}
        if request.model is None or request.version is None:
            missing = "no version answered it: it was refused before one was drawn"
            yield Step(what="response", name=name, facts={"endpoint": request.endpoint}, missing=[missing])
            return
        yield Step(what="response", name=name, facts=said)
        served: ServedVersion | None = None
        try:
            revision = read_revision(self._catalog.store, request.endpoint, request.revision)
        except (ModelyardError, ValueError) as failure:
            yield Step(what="endpoint revision", name=str(request.revision), missing=[str(failure)])
        else:
            served = _served(revision, request.model, request.version)
            missing = [] if served else [f"it does not name {request.model} version {request.version}"]
            yield _revision_step(request.endpoint, revision, served, missing)
        known, problem = self._registered()
        wanted = (request.model, request.version)
        mine = [version for version in known if (version.model_name, version.version) == wanted]
        yield from self._registrations(mine, problem)
        # The revision decides what answered; the registry stands in where the revision is gone.
        source = served or next(iter(mine), None)
        yield from self._artifacts([source.artifact, source.verdict] if source else [])

    def _revisions_with(self, ref: ArtifactRef) -> Iterator[Step]:
        """The revisions in which an artifact began to serve."""
        store = self._catalog.store
        for info in store.list(f"{store.root}/endpoints"):
            parts = info.uri.split("/")
            if parts[-2] != "revisions":
                continue
            revision = Revision.model_validate_json(store.get(info.uri))
            for state in revision.models.values():
                for served in state.versions:
                    if served.artifact.digest == ref.digest:
                        yield _revision_step(parts[-3], revision, served, [])

    def _registered(self) -> tuple[list[RegisteredVersion], str | None]:
        """Every registered version, or why they cannot be known."""
        if problem := self._away.get("MLflow"):
            return [], problem
        try:
            return self._tracker.versions(), None
        except TrackerUnavailable as failure:
            self._away["MLflow"] = str(failure)
            return [], str(failure)

    def _registrations(self, versions: list[RegisteredVersion], problem: str | None) -> Iterator[Step]:
        for version in versions:
            facts = {"package": version.artifact.digest, "verdict": version.verdict.digest}
            missing: list[str] = []
            self._add_runs(facts, missing, version.flow_run_id, version.mlflow_run_id)
            yield Step(
                what="registry version", name=f"{version.model_name}/{version.version}", facts=facts, missing=missing
            )
        if not versions:
            yield Step(what="registry version", name="", missing=[problem or "no version in the registry names it"])

    # -- what it was made from ------------------------------------------------------------------------

    def _artifacts(self, refs: list[ArtifactRef]) -> Iterator[Step]:
        """These artifacts and what they were made from, each once."""
        waiting, seen = list(refs), set[str]()
        while waiting:
            ref = waiting.pop(0)
            if ref.digest in seen:
                continue
            seen.add(ref.digest)
            try:
                manifest = self._catalog.manifest(ref)
            except ModelyardError as failure:
                yield Step(what=NAMES.get(ref.kind, ref.kind), name=ref.digest, missing=[str(failure)])
                continue
            yield self._artifact(ref, manifest)
            for role, digest in manifest.content.inputs.items():
                uri = manifest.provenance.input_uris.get(role, "")
                try:
                    found = self._catalog.resolve(uri)
                    waiting.append(found.model_copy(update={"digest": digest}))
                except (ModelyardError, ValueError) as failure:
                    if digest not in seen:
                        yield Step(what=role, name=digest, missing=[f"{uri or 'nowhere'}: {failure}"])
                    seen.add(digest)

    def _artifact(self, ref: ArtifactRef, manifest: Manifest) -> Step:
        told, missing = manifest.provenance, list[str]()
        facts: dict[str, Any] = {
            "uri": ref.uri,
            "made": f"{told.created_at} on {told.machine}, in {told.seconds} s",
            "commit": told.commit,
        }
        if told.commit is None:
            missing.append("no commit was recorded: the code was no git checkout, and MODELYARD_COMMIT was not set")
        self._add_runs(facts, missing, told.flow_run_id, told.mlflow_run_id)
        if ref.kind in SIGNED:
            folder = self._catalog.store.list(f"{ref.uri}/{SIGNATURES_FOLDER}")
            facts["signed by"] = [info.uri.rpartition("/")[2].removesuffix(".json")[:12] for info in folder]
            missing += [] if facts["signed by"] else ["nobody has signed it"]
        facts |= {name: value for name, value in manifest.content.facts.items() if not isinstance(value, dict | list)}
        return Step(what=NAMES.get(ref.kind, ref.kind), name=ref.digest, facts=facts, missing=missing)

    # -- runs -----------------------------------------------------------------------------------------

    def _add_runs(
        self, facts: dict[str, Any], missing: list[str], flow_run_id: str | None, mlflow_run_id: str | None
    ) -> None:
        for what, run_id, look in (
            ("flow run", flow_run_id, self._flow_run),
            ("MLflow run", mlflow_run_id, self._mlflow_run),
        ):
            if run_id is None:
                missing.append(f"no {what} was recorded")
                continue
            facts[what] = run_id
            try:
                facts |= look(run_id)
            except (NotFound, TrackerUnavailable) as failure:
                missing.append(f"{what} {run_id}: {failure}")

    def _flow_run(self, run_id: str) -> dict[str, Any]:
        if problem := self._away.get("Prefect"):
            raise NotFound(problem)
        api, is_ours = self._settings.api_url, self._settings.prefect_api_url is None
        try:
            answer = httpx.get(
                f"{api}/flow_runs/{run_id}", headers=prefect_headers(), timeout=REQUEST_SECONDS, trust_env=not is_ours
            )
        except httpx.HTTPError as failure:
            problem = self._away["Prefect"] = f"Prefect at {api} does not answer: {failure or type(failure).__name__}"
            raise NotFound(problem) from failure
        if answer.status_code != httpx.codes.OK:
            raise NotFound(f"Prefect at {api} does not know it any more ({answer.status_code})")
        run = answer.json()
        state = f"{run['name']}, {run['state_name']}"
        return {"flow run is": state, "flow run": f"{api.removesuffix('/api')}/runs/flow-run/{run_id}"}

    def _mlflow_run(self, run_id: str) -> dict[str, Any]:
        if problem := self._away.get("MLflow"):
            raise TrackerUnavailable(problem)
        try:
            return {"MLflow run": self._tracker.run_url(run_id)}
        except TrackerUnavailable as failure:
            self._away["MLflow"] = str(failure)
            raise


def _served(revision: Revision, model: str, version: str) -> ServedVersion | None:
    state = revision.models.get(model)
    candidates = [*state.versions, *([state.previous] if state.previous else [])] if state else []
    return next((each for each in candidates if each.version == version), None)


def _revision_step(endpoint: str, revision: Revision, served: ServedVersion | None, missing: list[str]) -> Step:
    facts: dict[str, Any] = {
        "endpoint": endpoint,
        "written": f"{revision.created_at[:19]} by {revision.author}",
        "reason": revision.reason,
    }
    if served:
        facts |= {"version": served.version, "form": served.form, "weight": served.weight}
    return Step(what="endpoint revision", name=str(revision.number), facts=facts, missing=missing)
