"""The main job: from a data set in object storage to a served, versioned model."""

from __future__ import annotations

from prefect import State, flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Failed

import tasks.lifecycle as tasks
from flows.compress import compress
from flows.evaluate import evaluate
from flows.parameters import DatasetUri, Device, MaxEpochs, MinScore, Overrides, Preset, Ranks, load_config
from flows.preprocess import preprocess
from flows.rollout import rollout
from flows.train import train
from modelyard.errors import RolledBack
from modelyard.presets import require_lifecycle
from tasks.results import LifecycleResult, StageRefused


@flow(name="lifecycle", retries=0, persist_result=True, result_serializer="json")
def lifecycle(
    preset: Preset = "digits",
    dataset_uri: DatasetUri = "",
    max_epochs: MaxEpochs = 0,
    ranks: Ranks = 0,
    device: Device = "preset",
    min_score: MinScore = 0.0,
    overrides: Overrides = [],
) -> LifecycleResult | State[LifecycleResult]:
    """Preprocess, train, compress, evaluate, roll out. Cancel this run to cancel them all."""
    settings = [*overrides, *_as_overrides(max_epochs, ranks, device, min_score)]
    config = load_config(preset, dataset_uri, settings)
    require_lifecycle(config)
    # This run's own heartbeat speaks for its stages: the end of a flow with one of its own waits up to a second for it.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), tasks.parent_run(config, preset) as run:
        prepared = preprocess(preset, dataset_uri, settings, run.id)
        run.add(prepared)
        # `wait_for` draws the arrows of the graph in the UI; Prefect's type overloads leave it out.
        data = prepared.ref.digest
        trained = train(preset, dataset_uri, data, settings, run.id, wait_for=[prepared])  # ty: ignore[no-matching-overload]
        run.add(trained)
        model = trained.ref.digest
        compressed = compress(preset, dataset_uri, model, data, settings, run.id, wait_for=[trained])  # ty: ignore[no-matching-overload]
        run.add(compressed)
        small = compressed.ref.digest
        try:
            verdict = evaluate(preset, dataset_uri, small, data, settings, run.id, wait_for=[compressed])  # ty: ignore[no-matching-overload]
        except StageRefused as refusal:
            run.refuse(refusal)
            return Failed(name="Refused", message=str(refusal))
        run.add(verdict)
        try:
            served = rollout(small, verdict.ref.digest, preset, settings, run.id, wait_for=[verdict])  # ty: ignore[no-matching-overload]
        except RolledBack as refusal:
            run.roll_back(refusal)
            return Failed(name="RolledBack", message=str(refusal))
        run.add(served)
        return run.report()


def _as_overrides(max_epochs: int, ranks: int, device: str, min_score: float) -> list[str]:
    """The form's few common fields, as what they stand for."""
    chosen = "" if device == "preset" else device
    fields = {"train.max_epochs": max_epochs, "train.ranks": ranks, "train.device": chosen, "evaluate.floor": min_score}
    return [f"{key}={value}" for key, value in fields.items() if value]
