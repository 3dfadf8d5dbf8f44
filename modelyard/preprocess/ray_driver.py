"""The process that has a Ray cluster prepare partitions: ``python -m modelyard.preprocess.ray_driver``.

Started by `modelyard.preprocess.ray_workers`, never by hand. The first line of its standard input says with which cluster and
how, and is answered as an order is; each further one is an order with a number, and its outcome is told with that number as
soon as it is known. When that input closes it ends, and Ray ends what it had begun.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from modelyard.errors import ConfigError, ModelyardError
from modelyard.preprocess.crews import TRIES
from modelyard.preprocess.processes import thread_limits
from modelyard.preprocess.sections import WorkersConfig
from modelyard.ray_cluster import connect, start_here

LEAVE_SECONDS = 3.0
FIELD = "preprocess.workers"


class Answers:
    """Lines that leave; callbacks of Ray's own threads write them too."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", buffering=1)
        self._writing = threading.Lock()
        os.dup2(2, 1)  # what libraries print goes to the log instead

    def write(self, value: Any) -> None:
        with self._writing:
            self._file.write(json.dumps(value) + "\n")


class Tasks:
    """Orders as tasks of a cluster: Ray tries one again whose worker or node dies, and none for another reason."""

    def __init__(self, answers: Answers, config: WorkersConfig, cpus: int) -> None:
        import ray

        from modelyard.preprocess.worker import outcome_of

        self._answers = answers
        self._under_way: dict[int, Any] = {}  # a result that nobody refers to is none
        options: dict[str, Any] = {
            "num_cpus": cpus,
            "memory": config.memory_bytes,
            "max_retries": TRIES - 1,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": thread_limits(cpus)},
        }
        self._task: Any = ray.remote(**options)(outcome_of)

    def begin(self, number: int, order: dict[str, Any]) -> None:
        reference = self._task.remote(order)
        self._under_way[number] = reference
        files = [source["name"] for source in order["preparation"]["partition"]["sources"]]
        reference.future().add_done_callback(partial(self._end, number, files))

    def _end(self, number: int, files: list[str], done: Any) -> None:
        try:
            outcome = done.result()
        except Exception as failure:  # noqa: BLE001 - whatever it is, who asked must hear of it
            outcome = told(failure, files)
        self._answers.write({"number": number, "outcome": outcome})
        self._under_way.pop(number, None)


def told(failure: Exception, files: list[str]) -> dict[str, str]:
    """What Ray met, as `modelyard.preprocess.worker.outcome_of` would say it."""
    from ray.exceptions import RayTaskError, RuntimeEnvSetupError

    names = ", ".join(files[:3]) + (f" and {len(files) - 3} more files" if len(files) > 3 else "")
    why = (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
    if isinstance(failure, RayTaskError | RuntimeEnvSetupError):  # before anything of ours ran there
        return {
            "error": "ConfigError",
            "message": f"{FIELD}: a node of the Ray cluster cannot prepare partitions: {why}; install the same Modelyard there",
        }
    kind = type(failure).__name__
    return {
        "error": "WorkerLost",
        "message": f"{names} could not be prepared: workers of the Ray cluster died, {TRIES} of them ({kind}: {why})",
    }


def reach(config: WorkersConfig, count: int, threads: int) -> int:
    """Become a driver of the cluster; how many CPUs each partition takes there.

    Raises:
        ModelyardError: it does not answer, or is too small.
    """
    if not config.address:
        start_here(count * threads, count * config.memory_bytes)
        return threads
    connect(config.address, f"{FIELD}.address")
    require_room(config)
    return config.cpus


def require_room(config: WorkersConfig) -> None:
    """Say at once what Ray would wait for, for ever.

    Raises:
        ConfigError: no living node has that many CPUs and that much memory.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= config.cpus and node.get("memory", 0) >= config.memory_bytes for node in nodes):
        return
    there = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('memory', 0) / 2**20:.0f} MiB" for node in nodes)
    raise ConfigError(
        FIELD,
        f"a partition is to have {config.cpus} CPU (cpus) and {config.memory_bytes / 2**20:.0f} MiB (memory_bytes), and no"
        f" node of the Ray cluster has them: {there}",
    )


def main() -> None:
    """Serve until standard input closes."""
    answers = Answers()
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(lines.put,), daemon=True).start()
    said = json.loads(lines.get() or b"{}")
    if not said:
        _leave()
    config = WorkersConfig.model_validate(said["workers"])
    try:
        tasks = Tasks(answers, config, reach(config, said["count"], said["threads"]))
    except ModelyardError as failure:
        answers.write({"error": type(failure).__name__, "message": str(failure)})
        _leave()
    answers.write({})
    while line := lines.get():
        tasks.begin(**json.loads(line))
    _leave()


def _listen(put: Callable[[bytes], None]) -> None:
    for line in sys.stdin.buffer:
        put(line)
    _end_soon()
    put(b"")


def _end_soon() -> None:
    timer = threading.Timer(LEAVE_SECONDS, os._exit, [0])
    timer.daemon = True
    timer.start()


def _leave() -> NoReturn:
    """End in order where Ray lets us, and soon in any case."""
    _end_soon()
    if ray := sys.modules.get("ray"):
        ray.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
