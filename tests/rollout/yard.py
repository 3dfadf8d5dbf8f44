"""Rollouts on the whole stack, with what a test does to its processes meanwhile, and what must be true afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil

from commands import stack as stack_commands
from commands.environment import PROJECT
from commands.parts import STORE
from commands.supervision import Supervisor
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ModelyardError, TransientError
from modelyard.ledger import Span, history
from modelyard.revisions import (
    Decision,
    ModelState,
    Revision,
    ServedVersion,
    first_revision,
    latest_revision,
    revisions_since,
)
from modelyard.rollout import Release, RolloutConfig, rollback, rollout
from modelyard.rollout.agreement import disagreements
from modelyard.storage import Store
from modelyard.tracking import Tracker
from tests.conftest import Installation
from tests.serve.packages import publish_version
from tests.serve.processes import until

FLOW = (
    "import json, sys; from importlib import import_module; name = sys.argv[1];"
    " getattr(import_module(f'flows.{name}'), name)(**json.loads(sys.argv[2]))"
)
TRY_AGAIN_SECONDS = 0.5
ENDS = ("promote", "roll_back", "give_up")


class Yard:
    """One model on the stack's endpoint; its versions are linear models, seeded by their numbers in the registry."""

    def __init__(self, stack: Installation, model: str, policy: dict[str, Any], log: Path) -> None:
        self.settings = stack.settings
        self.model = model
        self.log = log
        self.store = Store(stack.settings)
        self.catalog = Catalog(self.store)
        self.tracker = Tracker(stack.settings)
        self.supervisor = Supervisor(stack.home)
        self.config = RolloutConfig.model_validate({"takeover_seconds": 30, "policy": policy})
        self._policy = policy
        self._client = httpx.Client(
            base_url=stack.settings.serving_url, headers=stack.settings.endpoint_headers, timeout=5, trust_env=False
        )

    def close(self) -> None:
        self._client.close()

    # -- rolling out ----------------------------------------------------------------------------------

    def publish(self, number: int) -> ServedVersion:
        """A judged candidate, not registered yet; roll them out in the order of their numbers."""
        return publish_version(self.store, str(number))

    def start_flow(self, candidate: ServedVersion, *overrides: str) -> subprocess.Popen[bytes]:
        """The rollout flow in a process of its own, as a worker starts it."""
        given = {
            "candidate": candidate.artifact.digest,
            "verdict": candidate.verdict.digest,
            "overrides": [
                f"model_name={self.model}",
                *overrides,
                *(f"rollout.policy.{key}={json.dumps(value)}" for key, value in self._policy.items()),
            ],
        }
        return self._start("rollout", given)

    def start_rollback(self, *overrides: str) -> subprocess.Popen[bytes]:
        """The rollback flow likewise."""
        return self._start("rollback", {"overrides": [f"model_name={self.model}", *overrides]})

    def _start(self, flow: str, given: dict[str, Any]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", FLOW, flow, json.dumps(given)], cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT
            )

    def roll_out(self, candidate: ServedVersion, seconds: float = 60) -> Release:
        """What the flow's task does: the core's rollout, tried again as long as what stops it may pass."""
        return self._persist(
            lambda origin: rollout(
                self.catalog,
                self.tracker,
                self.settings,
                model_name=self.model,
                candidate=candidate.artifact,
                verdict=candidate.verdict,
                config=self.config,
                origin=origin,
            ),
            seconds,
        )

    def go_back(self, seconds: float = 60) -> Release:
        """As the rollback flow's task does."""
        return self._persist(
            lambda origin: rollback(
                self.catalog, self.tracker, self.settings, model_name=self.model, config=self.config, origin=origin
            ),
            seconds,
        )

    def _persist(self, act: Any, seconds: float) -> Release:
        origin, end = Origin(flow_run_id=uuid4().hex), time.monotonic() + seconds
        while True:
            try:
                return act(origin)
            except TransientError:
                if time.monotonic() > end:
                    raise
                time.sleep(TRY_AGAIN_SECONDS)

    # -- what is, and what was ------------------------------------------------------------------------

    def newest(self) -> Revision:
        return latest_revision(self.store, self.settings.endpoint_name) or first_revision()

    def state(self) -> ModelState | None:
        return self.newest().models.get(self.model)

    def decisions(self, after: int) -> list[Decision]:
        """Of this model, in the order of the ledger."""
        found = revisions_since(self.store, self.settings.endpoint_name, after)
        return [one.decision for one in found if one.decision and one.decision.model == self.model]

    def spans(self) -> list[Span]:
        return history(self.store, self.settings.endpoint_name, self.model)

    def num_registered(self) -> int:
        return sum(one.model_name == self.model for one in self.tracker.versions())

    def begun(self, candidate: ServedVersion, after: int) -> bool:
        """Whether the ledger has named the candidate since a revision."""
        try:
            return any(one.decision and one.decision.model == self.model and self._names(one, candidate)
                       for one in revisions_since(self.store, self.settings.endpoint_name, after))  # fmt: skip
        except ModelyardError:
            return False  # the store is away

    def _names(self, revision: Revision, candidate: ServedVersion) -> bool:
        state = revision.models.get(self.model)
        return bool(state) and any(one.artifact.digest == candidate.artifact.digest for one in state.versions)

    def is_decided(self) -> bool:
        """Whether no rollout of the model is under way; False while that cannot be told."""
        try:
            state = self.state()
        except ModelyardError:
            return False
        return state is not None and state.rollout is None

    def assert_one_truth(self, seconds: float = 60) -> None:
        """Registry, ledger, endpoint and manifests agree; one version has all requests, and it is the one that answers.

        The endpoint may still be on its way: it starts again, or has not looked since.
        """
        said: list[str] = []

        def agree() -> bool:
            try:
                said[:] = disagreements(self.catalog, self.tracker, self.settings)
            except TransientError as away:
                said[:] = [str(away)]
            return not said

        try:
            until(agree, "agreement", seconds)
        except AssertionError as late:
            raise AssertionError(f"{late}: {said}") from None
        state = self.state()
        assert state is not None
        assert state.rollout is None
        assert [version.weight for version in state.versions] == [100]
        [now] = [span for span in self.spans() if span.end is None]
        assert (now.digest, now.weight) == (state.stable.artifact.digest, 100)
        answering = self._client.get(f"/v2/models/{self.model}").raise_for_status()
        assert answering.headers["Modelyard-Artifact-Digest"] == now.digest

    # -- harm -----------------------------------------------------------------------------------------

    def kill_worker(self, place: int) -> None:
        """kill -9 of the worker of the stable version (0), or of the canary (-1) where there is one."""
        try:
            model = self._client.get("/admin/status").raise_for_status().json()["models"][self.model]
        except (httpx.HTTPError, KeyError):
            return  # the endpoint is away, and its workers are too
        if pid := model["versions"][place]["worker_pid"]:
            _kill(psutil.Process(pid))

    def kill_endpoint(self) -> None:
        """kill -9 of the parent and its routers; the supervisor starts another."""
        if pid := self.supervisor.states()["endpoint"].pid:
            parent = psutil.Process(pid)
            for process in [parent, *parent.children()]:
                _kill(process)

    def kill_store(self) -> None:
        """kill -9; the supervisor starts it again."""
        if pid := self.supervisor.states()["store"].pid:
            _kill(psutil.Process(pid))

    def restart_store(self) -> None:
        """As an update of it would."""
        self.supervisor.stop("store")
        stack_commands.up(self.settings, [STORE])

    def replace_router(self) -> None:
        """`modelyard replace`."""
        command = [sys.executable, "-m", "commands.main", "replace"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _kill(process: psutil.Process) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
