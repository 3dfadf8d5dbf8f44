"""What a replica says about itself at `/admin/status`."""

from __future__ import annotations

import os
from typing import Any

from modelyard.revisions import ReplicaStatus
from modelyard.serve.router import Route, Table
from modelyard.serve.running import RunningVersion


def describe(endpoint: str, status: ReplicaStatus, table: Table) -> dict[str, Any]:
    """The published status, and the processes behind it."""
    models = {name: _describe_route(route) for name, route in table.routes.items()}
    return status.model_dump() | {"endpoint": endpoint, "router_pid": os.getpid(), "models": models}


def _describe_route(route: Route) -> dict[str, Any]:
    shares = route.shares()
    return {
        "versions": [_describe_version(version, weight, shares[version]) for version, weight in route.weighted],
        "previous": _describe_version(route.previous, 0.0, shares[route.previous]) if route.previous else None,
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
