"""What prepares a partition in another process: on this machine, or anywhere in a Dask or Ray cluster.

    python -m modelyard.preprocess.worker

Started by `modelyard.preprocess.processes`, never by hand. Orders come as lines of JSON on standard input, and each is
answered by a line on standard output. It ends when that input closes, which a dying parent sees to, whatever it is doing.
It reads settings and credentials of its own, as the ranks of a training do.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Mapping
from functools import cache
from typing import Any

from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError, ModelyardError
from modelyard.preprocess.prepare import Preparation, prepare
from modelyard.preprocess.protect import Protector
from modelyard.preprocess.stage import partition_code
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store

PARENT_GONE_STATUS = 75  # EX_TEMPFAIL

Json = Mapping[str, Any]


def outcome_of(order: Json) -> dict[str, str]:
    """Carry out an order; empty if that went well, else ``error`` (name of the class) and ``message``.

    As plain values, because what comes back goes through a pipe or a cluster.
    """
    try:
        _prepare(Preparation.model_validate(order["preparation"]), Origin(**order["origin"]))
    except ModelyardError as failure:
        return {"error": type(failure).__name__, "message": str(failure)}
    except Exception as failure:  # noqa: BLE001 - whatever it is, who asked must hear of it
        traceback.print_exc()
        return {"error": type(failure).__name__, "message": f"{type(failure).__name__}: {failure}"}
    return {}


def _prepare(preparation: Preparation, origin: Origin) -> None:
    config, (settings, catalog) = preparation.config, _session()
    key = settings.sensitive_key
    protector = Protector(config, key.get_secret_value().encode() if key else None)
    if protector.fingerprint() != preparation.key_fingerprint:
        raise ConfigError("MODELYARD_SENSITIVE_KEY", "is another one where partitions are prepared; give all the same")
    if partition_code(config) != preparation.code_version:
        raise ConfigError(
            "preprocess.workers",
            "a worker runs other code, of Modelyard or of yours, or other releases of numpy, polars or pyarrow: install the"
            " same",
        )
    prepare(catalog, preparation, protector, origin)


@cache
def _session() -> tuple[Settings, Catalog]:
    settings = load_settings()
    return settings, Catalog(Store(settings))


def main() -> None:
    """Serve until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries and users print goes to the log instead
    orders: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    while True:
        answers.write(json.dumps(outcome_of(json.loads(orders.get()))) + "\n")


def _listen(orders: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    os._exit(PARENT_GONE_STATUS)


if __name__ == "__main__":
    main()
