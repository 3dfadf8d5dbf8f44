"""How often each key asked today: the meter behind quotas and bills. A day is a day of UTC.

    <home>/endpoint/usage/2026-11-22.json    {"alice": 1042}

Counts are kept in memory and saved every few seconds, so a killed router forgets that much at most. Each endpoint process
counts for itself.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from modelyard.serve.answers import HttpError

logger = logging.getLogger(__name__)

DAY_SECONDS = 86_400


class Meter:
    """Counts by key.

    Args:
        folder: where a day's counts are saved; None: nowhere.
        clock: seconds since the epoch.
    """

    def __init__(self, folder: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._ends_at = 0.0
        self._day = ""
        self._counts: Counter[str] = Counter()
        self._saved = 0
        self._turn_over()

    def count(self, name: str, per_day: int | None) -> None:
        """One request of a key.

        Raises:
            HttpError: 429, with the seconds until midnight, where its quota is used up.
        """
        now = self._clock()
        if now >= self._ends_at:
            self._turn_over()
        if per_day is not None and self._counts[name] >= per_day:
            again = (b"retry-after", b"%d" % (self._ends_at - now + 1))
            raise HttpError(
                429, f"the key {name!r} may ask {per_day} times a day, and has; the day ends at 0:00 UTC", [again]
            )
        self._counts[name] += 1

    def today(self) -> Mapping[str, int]:
        return dict(self._counts)

    def save(self) -> None:
        """Keep the counts for the next process. A router that leaves must not take back what its successor counted."""
        total = self._counts.total()
        if self._folder is None or total == self._saved:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._day}.json"
        partial = path.with_suffix(f".{os.getpid()}")
        together = Counter(self._read()) | self._counts  # of each key the larger one
        partial.write_text(json.dumps(dict(sorted(together.items()))))
        partial.replace(path)
        self._saved = total

    def _turn_over(self) -> None:
        """Begin a day, with what an earlier process counted in it."""
        if self._day:
            self.save()
        now = self._clock()
        self._ends_at = (now // DAY_SECONDS + 1) * DAY_SECONDS
        self._day = time.strftime("%Y-%m-%d", time.gmtime(now))
        self._counts = Counter(self._read())
        self._saved = self._counts.total()

    def _read(self) -> dict[str, int]:
        if self._folder is None:
            return {}
        try:
            counts = json.loads((self._folder / f"{self._day}.json").read_bytes())
            return {str(name): int(number) for name, number in counts.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as failure:
            logger.warning("the day's counts cannot be read, and begin anew: %s", failure)
            return {}
