"""The benchmarks' own embedded stack: a home folder in the temporary directory, ports nobody uses, nothing of the
user's. It is taken down at the end whatever happens.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from commands import environment, secrets, stack
from commands.parts import PARTS, Part
from commands.ports import free_ports
from commands.stack import Report
from modelyard.settings import ENV_PREFIX, Settings, load_settings

# Below those of the tests, as are their gRPC twins: both may run at the same time.
PORTS = range(12_000, 15_000)
FOREIGN_PREFIXES = (ENV_PREFIX, "PREFECT_", "MLFLOW_", "AWS_")


class Installation:
    """One home on fixed ports, so that this process can stay a client of it while it is emptied and started anew.

    Attributes:
        scratch: a folder for files of the benchmarks, on the same disk.
    """

    def __init__(self, settings: Settings, scratch: Path) -> None:
        self.settings = settings
        self.scratch = scratch

    def up(self, parts: Sequence[Part] = PARTS, report: Report | None = None) -> Settings:
        """Bring these parts up and wait until they work."""
        self.settings = stack.up(self.settings, parts, report)
        return self.settings

    def down(self) -> None:
        stack.down(self.settings)

    def clean(self) -> None:
        """Down, and without any data; the secrets are written anew by the next `up`."""
        self.down()
        shutil.rmtree(self.settings.home, ignore_errors=True)


@contextmanager
def own_installation() -> Generator[Installation]:
    """An installation with nothing running yet; at the end nothing of it runs or lies about.

    This process becomes its client, so call it before Prefect or MLflow are imported.
    """
    for variable in [name for name in os.environ if name.startswith(FOREIGN_PREFIXES)]:
        del os.environ[variable]
    os.environ[ENV_PREFIX + "ENV_FILE"] = os.devnull
    folder = Path(tempfile.mkdtemp(prefix="modelyard-bench-", dir="/tmp"))
    fields = [field for field in Settings.model_fields if field.endswith("_port")]
    ports = dict(zip(fields, free_ports(len(fields), PORTS), strict=True))
    settings = load_settings(home=folder / "home", **ports)
    settings = secrets.ensure(settings, store_is_running=False)
    environment.apply(settings)
    installation = Installation(settings, folder / "scratch")
    installation.scratch.mkdir()
    try:
        yield installation
    finally:
        try:
            installation.down()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
