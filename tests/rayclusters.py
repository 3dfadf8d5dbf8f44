"""Ray clusters of several nodes on this machine: each with processes of its own, that can be killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

NODE = {"object_store_memory": 80_000_000, "include_dashboard": False}


@contextmanager
def ray_cluster(*cpus: int) -> Generator[Any]:
    """A head without CPUs, and a node for each number of them; `ray.cluster_utils.Cluster`.

    Its nodes have the environment of now: the settings of the test's installation.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    auth = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # whatever lies in the home of who runs the tests
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie below it: a short path
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, **NODE})
    try:
        for count in cpus:
            cluster.add_node(num_cpus=count, **NODE)
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("RAY_AUTH_MODE")
        if auth is not None:
            os.environ["RAY_AUTH_MODE"] = auth


@contextmanager
def occupied(address: str, cpus: int = 2) -> Generator[None]:
    """Somebody else holds CPUs of a cluster."""
    script = (
        "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR');"
        "held = ray.util.placement_group([{'CPU': 1}] * int(sys.argv[2]));"
        "print(held.wait(20), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, address, str(cpus)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait(10)
