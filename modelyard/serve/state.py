"""The last revision taken over in full, kept beside the cache for a start without the bucket."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pydantic import ValidationError

from modelyard.revisions import Revision

logger = logging.getLogger(__name__)


class LocalState:
    """One small file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Revision | None:
        try:
            return Revision.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as failure:
            logger.warning("%s: cannot be used: %s", self._path, failure)
            return None

    def write(self, revision: Revision) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        with partial.open("w") as file:
            file.write(revision.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
