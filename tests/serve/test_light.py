"""What the endpoint's processes have loaded while they serve, not only when they start."""

from __future__ import annotations

from pathlib import Path

import pytest
from psutil import Process

from tests.serve.packages import ROWS
from tests.serve.processes import Endpoint

HEAVY = ("torch", "pandas", "pyarrow", "mlflow", "matplotlib", "scipy", "sklearn", "aiohttp", "onnx", "cryptography")
MAX_PSS_BYTES = 110e6


@pytest.fixture(scope="module")
def processes(digits_endpoint: Endpoint) -> dict[str, int]:
    """Parent, router and worker, after they answered in each protocol."""
    body = {"inputs": [{"name": "features", "datatype": "FP64", "shape": [8, 4], "data": ROWS.tolist()}]}
    csv = b"feature_0,feature_1,feature_2,feature_3\n1,2,3,4"
    client = digits_endpoint.client
    assert client.post("/v2/models/digits/infer", json=body).status_code == 200
    assert client.post("/invocations", content=csv, headers={"Content-Type": "text/csv"}).status_code == 200
    assert client.get("/metrics").status_code == client.get("/openapi.json").status_code == 200
    [worker] = digits_endpoint.worker_pids()
    return {"parent": digits_endpoint.process.pid, "router": digits_endpoint.status()["router_pid"], "worker": worker}


@pytest.mark.parametrize("name", ["router", "worker"])
def test_serving_loads_nothing_heavy(processes: dict[str, int], name: str):
    """No library of training, tracking or frames is mapped into a process that has served."""
    maps = Path(f"/proc/{processes[name]}/maps").read_text()
    loaded = {line.split("site-packages/")[1].split("/")[0] for line in maps.splitlines() if "site-packages/" in line}
    assert "numpy" in loaded
    assert not loaded & set(HEAVY)


def test_the_parent_loads_next_to_nothing(processes: dict[str, int]):
    """Whoever holds the socket depends on no library, and needs less than 10 MB of its own."""
    assert "site-packages" not in Path(f"/proc/{processes['parent']}/maps").read_text()
    assert Process(processes["parent"]).memory_full_info().uss < 10e6


def test_router_and_worker_are_small(processes: dict[str, int]):
    """Together with their parent they hold less than 110 MB, shared pages counted by their share."""
    sizes = {name: Process(pid).memory_full_info().pss for name, pid in processes.items()}
    assert sum(sizes.values()) < MAX_PSS_BYTES, sizes


def test_the_forked_worker_has_nothing_of_the_router(processes: dict[str, int]):
    """Of all that was open when it was forked it holds its output and one socket: neither the listener, nor the line to the
    parent, nor the verifier's. It shares pages with the router, though."""
    links = {link.name: link.readlink() for link in Path(f"/proc/{processes['worker']}/fd").iterdir()}
    sockets = [number for number, target in links.items() if str(target).startswith("socket:")]
    assert len([number for number in sockets if int(number) > 2]) == 1
    assert str(links["0"]) == "/dev/null"
    assert not [target for number, target in links.items() if int(number) > 2 and str(target).startswith("pipe:")]
    maps = {name: Process(pid).memory_full_info() for name, pid in processes.items()}
    assert maps["worker"].pss - maps["worker"].uss > 5e6, maps
