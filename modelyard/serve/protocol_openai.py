"""The part of OpenAI's API that every client asks first: the list of models (https://platform.openai.com/docs/api-reference/models)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from modelyard.revisions import Revision

PREFIX = "/v1/models"


def listed(names: list[str], revision: Revision) -> dict[str, Any]:
    """Every model that is served."""
    return {"object": "list", "data": [described(name, revision) for name in names]}


def described(name: str, revision: Revision) -> dict[str, Any]:
    """One model; ``created`` is when the revision that is served was written, in seconds since the epoch."""
    created = int(datetime.fromisoformat(revision.created_at).timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": "modelyard"}
