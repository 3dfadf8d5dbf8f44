"""Partitions prepared by a Ray cluster: one that this machine is a node of, or one of its own for the run.

Ray itself runs in a process between us and the cluster (`modelyard.preprocess.ray_driver`): its connecting has no bound of its
own, and it takes over signals. When that process ends, Ray ends what it had begun there.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from types import TracebackType
from typing import Any, Self

from modelyard.catalog import Origin
from modelyard.errors import ClusterUnavailable, WorkerLost
from modelyard.preprocess.crews import MOST_SHARES, Patience, order_of, require_done
from modelyard.preprocess.prepare import Preparation
from modelyard.preprocess.processes import WorkerProcess
from modelyard.preprocess.sections import WorkersConfig
from modelyard.ray_cluster import NODE_ADVICE, require_ray

DRIVER = "modelyard.preprocess.ray_driver"
CONNECT_SECONDS = 20.0
START_SECONDS = 90.0  # of a cluster on this machine


class RayCrew:
    """Tasks in a Ray cluster, which gets all partitions at once and knows when a node or a worker dies.

    Args:
        count, threads: of a cluster on this machine, so many partitions at a time with so many CPUs each; of another one,
            ``config.cpus`` counts.

    Raises:
        ClusterUnavailable: as it is entered: no cluster answers.
        ConfigError: the same: no node of it has room for one partition, or it runs another release.
    """

    at_once = MOST_SHARES

    def __init__(self, config: WorkersConfig, origin: Origin, count: int, threads: int) -> None:
        self._config, self._origin = config, origin
        self._begin = {"workers": config.model_dump(mode="json"), "count": count, "threads": threads}
        self._patience = Patience(config.partition_seconds)
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[dict[str, str]]] = {}
        self._telling = threading.Lock()
        self._is_over = False
        self._listening = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._driver = WorkerProcess({}, DRIVER)
        try:
            self._connect()
        except BaseException:
            self._driver.stop()
            raise
        self._listening.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._listening.join()
        self._driver.stop()

    def carry_out(self, preparations: Sequence[Preparation]) -> None:
        waiting = {self._give(one) for one in preparations}
        while waiting:
            done, waiting = wait(waiting, timeout=self._patience.left, return_when=FIRST_COMPLETED)
            for answer in done:
                require_done(answer.result())
            if not done:
                self._patience.check()

    def cancel(self) -> None:
        with self._telling:
            self._is_over = True
        self._driver.end()

    def _connect(self) -> None:
        address = self._config.address
        seconds = CONNECT_SECONDS if address else START_SECONDS
        try:
            self._driver.tell(self._begin)
            require_done(self._driver.hear(seconds))
        except WorkerLost as failure:
            where = (
                f"{address} has not taken this process in"
                if address
                else "no Ray cluster of this machine's own came up"
            )
            advice = f"; either no Ray answers there, or this machine is no node of that cluster: {NODE_ADVICE}"
            raise ClusterUnavailable(f"{where} within {seconds:g} s ({failure}){advice if address else ''}") from None

    def _give(self, preparation: Preparation) -> Future[dict[str, str]]:
        number, answer = next(self._numbers), Future[dict[str, str]]()
        with self._telling:
            if self._is_over:
                raise CancelledError
            self._waiting[number] = answer
            self._driver.tell({"number": number, "order": order_of(preparation, self._origin)})
        return answer

    def _listen(self) -> None:
        """Until the driver ends; what was not answered then is lost."""
        try:
            while True:
                self._settle(self._driver.hear())
        except WorkerLost as failure:
            with self._telling:
                lost = CancelledError() if self._is_over else WorkerLost(f"Ray's driver ended: {failure}")
                self._is_over = True
            for answer in self._waiting.values():
                answer.set_exception(lost)

    def _settle(self, said: Mapping[str, Any]) -> None:
        self._patience.heard()
        self._waiting.pop(said["number"]).set_result(said["outcome"])


def require_ray_here() -> None:
    """Say what is missing before anything is read.

    Raises:
        MissingExtra: Ray is not installed.
    """
    require_ray("preprocess.workers.kind ray")
