"""What a version must show before it answers anybody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from modelyard.artifacts import Manifest
from modelyard.errors import DataError, Refused
from modelyard.revisions import Revision
from modelyard.serve.probe import GoldenRows, refuse_unless_golden
from modelyard.serve.running import RunningVersion, version_key

Running = Mapping[tuple[str, str, str, str], RunningVersion]


async def probe(version: RunningVersion, golden: GoldenRows) -> None:
    """Have a version that was just started answer its golden rows, and keep them for replaying.

    Raises:
        Refused: it takes other rows, or answers them otherwise than evaluation found.
    """
    subject = f"{version.model} version {version.served.version}"
    widths = {len(row) for row in golden.rows}
    if widths != {version.info.width} and not version.info.reads_text:
        raise Refused(subject, [f"golden rows have {sorted(widths)} values, it takes {version.info.width}"])
    rows = np.array(golden.rows, dtype=np.float64)
    try:
        answers = await version.infer(rows)
    except DataError as failure:
        raise Refused(subject, [f"it cannot compute its golden rows: {failure}"]) from failure
    outputs = answers["outputs"]
    assert isinstance(outputs, np.ndarray)
    refuse_unless_golden(subject, golden, version.served.form, outputs)
    version.golden_rows = rows
    version.num_requests = 0


def refuse_other_schemas(revision: Revision, running: Running) -> None:
    """A canary must take the rows that the stable version takes, because either may be drawn for a request.

    Raises:
        Refused: it takes others, or answers in another form.
    """
    for model, state in revision.models.items():
        if state.rollout is None:
            continue
        stable, canary = (running[version_key(model, served)].info for served in state.versions)
        subject = f"{model} version {state.versions[1].version}"
        hint = "requests cannot be shared between them; `rollout.policy.kind: all_at_once` switches all"
        if stable.columns != canary.columns:
            odd = sorted(set(stable.columns) ^ set(canary.columns)) or "their order"
            raise Refused(subject, [f"it takes other columns than the version that serves ({odd}): {hint}"])
        if stable.tags != canary.tags:
            raise Refused(
                subject, [f"its tags are {canary.tags}, those of the version that serves {stable.tags}: {hint}"]
            )
        if stable.outputs != canary.outputs:
            raise Refused(subject, [f"it answers {canary.outputs}, the version that serves {stable.outputs}: {hint}"])


def measured_seconds(folder: Path, form: str) -> float | None:
    """Median time for one row that compression measured for a form; None where its manifest does not say."""
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError):
        return None
    milliseconds = manifest.provenance.measurements.get("latency_ms", {}).get(form, {}).get("1")
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None
