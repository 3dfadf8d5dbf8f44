"""Which accelerators of a machine are a training's: one lock for each, held while its ranks live.

A count of slots, as Prefect keeps it, says how many trainings may run; it does not say on which device. The locks also hold
between stacks that share a machine's folder, and without any Prefect. A CPU is shared and is not locked.
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from modelyard.errors import MachineBusy

# Which accelerators are a training's, by number, in the order of its ranks on the machine.
DEVICES_VARIABLE = "MODELYARD_DEVICES_HELD"


@dataclass(frozen=True)
class HeldDevices:
    """Numbers of accelerators that are held, and the open files of their locks: whoever inherits one holds it too."""

    numbers: tuple[int, ...] = ()
    locks: tuple[int, ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        """Environment by which ranks find theirs."""
        return {DEVICES_VARIABLE: ",".join(map(str, self.numbers))} if self.numbers else {}


NO_DEVICES = HeldDevices()


@contextmanager
def held_devices(folder: Path, kind: str, wanted: int, count: int) -> Generator[HeldDevices]:
    """Hold so many free accelerators of a machine, the first ones.

    Args:
        folder: of the locks; all trainings of the machine name the same.
        kind: as torch names it; ``cpu`` needs none.
        count: that the machine has.

    Raises:
        MachineBusy: others hold too many of them.
    """
    if kind == "cpu":
        yield NO_DEVICES
        return
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        held = NO_DEVICES
        for number in range(count):
            if len(held.numbers) == wanted:
                break
            file = files.enter_context((folder / f"{kind}-{number}.lock").open("a"))
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = HeldDevices((*held.numbers, number), (*held.locks, file.fileno()))
        if len(held.numbers) < wanted:
            raise MachineBusy(
                f"{wanted} {kind} devices are wanted, and other trainings hold all but {len(held.numbers)} of {count} (locks"
                f" in {folder})"
            )
        yield held
