"""What people see of a rollout in Prefect while it goes on, and of how it ended in Prefect and MLflow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from modelyard.gates import Check, StepCounts
from modelyard.ledger import spans
from modelyard.revisions import Revision, revisions_since
from modelyard.rollout import Look
from modelyard.rollout.timeline import timeline
from tasks.recording import Record

PAGE_SECONDS = 5.0  # between two versions of the page within one step
PROGRESS_SECONDS = 1.0
PICTURE = "rollout.png"


class RolloutPage:
    """Called with each look at the rollout; `conclude` draws it."""

    def __init__(self, record: Record, before: int) -> None:
        self.looks: list[Look] = []
        self._record = record
        self._before = before
        self._log = get_run_logger()
        self._progress: UUID | None = None
        self._step = -1
        self._page_at = self._progress_at = 0.0

    def __call__(self, look: Look) -> None:
        self.looks.append(look)
        now = time.monotonic()
        is_new_step = look.step != self._step
        self._step = look.step
        if is_new_step:
            self._log.info("version %s gets %g %% of the requests", look.canary, look.weight)
        if is_new_step or now - self._progress_at > PROGRESS_SECONDS:
            self._progress_at = now
            self._show_progress(look)
        if is_new_step or now - self._page_at > PAGE_SECONDS:
            self._page_at = now
            self._publish("is under way", look.waits_for, look.checks, look.counts)

    def conclude(self, outcome: str, reasons: Sequence[str]) -> None:
        """The last page, and the picture of the whole."""
        store, name = self._record.session.store, self._record.session.settings.endpoint_name
        story = list(revisions_since(store, name, self._before))
        decision = next((one.decision for one in reversed(story) if one.decision and one.decision.checks), None)
        checks, counts = (decision.checks, decision.counts) if decision else ([], [])
        self._publish(outcome, "; ".join(reasons), checks, counts)
        if self._progress:
            update_progress_artifact(self._progress, progress=100.0, description=outcome)
        self._draw(outcome, story)

    def _draw(self, outcome: str, story: Sequence[Revision]) -> None:
        model = self._record.trail.model_name
        store, name = self._record.session.store, self._record.session.settings.endpoint_name
        if not story:
            return
        # One revision more, so that what served before is in the picture.
        whole = list(revisions_since(store, name, max(0, self._before - 1)))
        drawn = [span for span in spans(whole) if span.model == model]
        if not drawn:
            return
        tracker, run_id = self._record.session.tracker, self._record.run_id
        tracker.log_figure(run_id, timeline(drawn, self.looks, f"{model} {outcome}", story[0].created_at), PICTURE)
        create_link_artifact(
            key="rollout-timeline",
            link=tracker.artifact_url(run_id, PICTURE),
            link_text="Timeline of the rollout",
            description="Weights of both versions and the evidence of each gate over time, as a picture in MLflow",
        )

    def _show_progress(self, look: Look) -> None:
        percent = 100.0 * look.step / look.num_steps
        words = f"version {look.canary} at {look.weight:g} %: {look.waits_for or 'goes on'}"
        if self._progress is None:
            self._progress = create_progress_artifact(progress=percent, key="rollout-progress", description=words)  # ty: ignore[invalid-assignment]
        else:
            update_progress_artifact(self._progress, progress=percent, description=words)

    def _publish(self, outcome: str, words: str, checks: Sequence[Check], counts: Sequence[StepCounts]) -> None:
        text = page(self._record.trail.model_name, outcome, words, checks, counts)
        create_markdown_artifact(key="rollout", markdown=text, description=f"{self._record.trail.model_name} {outcome}")


def page(model: str, outcome: str, words: str, checks: Sequence[Check], counts: Sequence[StepCounts]) -> str:
    """Weights, errors and latency of both versions step by step, and each gate's evidence against its limit."""
    lines = [f"# {model} {outcome}", "", words, ""]
    if counts:
        lines += [
            "| weight % | version | requests | of them replayed | failing | slow | refused or no number | mean ms |",
            "|---:|---|---:|---:|---:|---:|---:|---:|",
            *(_row(one, who) for one in counts for who in ("canary", "stable")),
            "",
        ]
    if checks:
        lines += ["| gate | evidence | limit | |", "|---|---:|---:|---|"]
        lines += [
            f"| {check.name} | {check.value or 0:.3g} | {check.limit or 0:.3g} | {'' if check.passed else '**rolled back**'} |"
            for check in checks
        ]
    return "\n".join(lines)


def _row(counts: StepCounts, who: str) -> str:
    one = counts.canary if who == "canary" else counts.stable
    weight = counts.weight if who == "canary" else 100 - counts.weight
    mean = "-" if one.mean_seconds is None else f"{1000 * one.mean_seconds:.2f}"
    return f"| {weight:g} | {who} | {one.requests:,} | {one.replayed:,} | {one.errors:,} | {one.slow:,} | {one.odd:,} | {mean} |"
