"""What a replica says about itself at `/admin/status`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modelyard.revisions import ReplicaStatus
from modelyard.serve.router import Route, Table
from modelyard.serve.running import RunningVersion
from modelyard.serve.trial import Trial


def describe(
    endpoint: str, status: ReplicaStatus, table: Table, trials: Mapping[str, Trial] = MappingProxyType({})
) -> dict[str, Any]:
    """The published status, the processes behind it, and the rollouts under way."""
    models = {name: _describe_route(route) for name, route in table.routes.items()}
    for name, trial in trials.items():
        models[name]["rollout"] = _describe_trial(trial)
    return status.model_dump() | {"endpoint": endpoint, "router_pid": os.getpid(), "models": models}


def _describe_route(route: Route) -> dict[str, Any]:
    shares = route.shares()
    return {
        "versions": [_describe_version(version, weight, shares.get(version, 0.0)) for version, weight in route.named()],
        "previous": _describe_version(route.previous, 0.0, shares[route.previous]) if route.previous else None,
    }


def _describe_trial(trial: Trial) -> dict[str, Any]:
    said = trial.judgement()
    return {
        "id": trial.rollout.id,
        "canary": trial.canary.served.version,
        "step": trial.rollout.step,
        "weight": trial.weight,
        "seconds": trial.seconds,
        "waits_for": trial.waits_for() or trial.unwritten,
        "slow_seconds": trial.slow_seconds,
        "dropped_copies": trial.copier.num_dropped if trial.copier else 0,
        "upper_error_rate": said.upper_error_rate,
        "checks": [check.model_dump() for check in said.checks],
        "counts": [counts.model_dump() for counts in trial.counts()],
    }


def _describe_version(version: RunningVersion, weight: float, share: float) -> dict[str, Any]:
    """``weight`` is what the revision says, ``share`` what it gets now, both in percent."""
    return {
        "version": version.served.version,
        "digest": version.served.artifact.digest,
        "form": version.served.form,
        "weight": weight,
        "share": share,
        "state": version.state,
        "keeps_dying": version.keeps_dying,
        "worker_pid": version.worker_pid,
        "requests": version.num_requests,
        "in_flight": version.num_in_flight,
        "restarts": version.num_restarts,
    }
