"""Killed again and again, at moments nobody chose."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import CheckpointConfig, TrainConfig, train
from tests.train.conftest import make_dataset
from tests.train.test_stage import KILL_BOUND_SECONDS, TRAINING_SCRIPT, is_rank

KILLS = int(os.environ.get("SOAK_KILLS", "20"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_training_killed_at_random_moments_ends_in_the_same_bits(
    settings: Settings, catalog: Catalog, dataset: ArtifactRef, config: TrainConfig
):
    """A rank, the launcher or the process that trains, whichever it hits, during start, steps, validation or a save:
    no rank outlives its parent by 10 s, and in the end the digest is that of a run that nobody touched."""
    long = config.model_copy(
        update={"seed": 5, "batch_size": 8, "max_epochs": 10 * KILLS, "checkpoint": CheckpointConfig(every_steps=40)}
    )
    command = [sys.executable, "-c", TRAINING_SCRIPT, dataset.model_dump_json(), long.model_dump_json()]
    draw, kills = random.Random(1), 0
    while kills < KILLS:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(draw.uniform(3, 14))
            assert process.poll() is None, f"it was done after {kills} kills; give it more epochs"
            family = psutil.Process(process.pid).children(recursive=True)
            ranks = [member for member in family if is_rank(member)]
            victim = draw.choice([psutil.Process(process.pid), *family[:1], *ranks])
            victim.send_signal(signal.SIGKILL)
            kills += 1
            if victim.pid != process.pid:
                time.sleep(draw.uniform(0, 6))  # the launcher or the task may be healing it: hit that as well
                process.kill()
        _, alive = psutil.wait_procs(family, timeout=KILL_BOUND_SECONDS)
        assert not alive
    battered = train(catalog, dataset, long, Origin())

    elsewhere = Catalog(Store(settings.model_copy(update={"bucket": "modelyard-calm"})))
    elsewhere.store.control.create_bucket()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_BUCKET", "modelyard-calm")
        calm = train(elsewhere, make_dataset(elsewhere), long, Origin())
    assert not calm.reused
    assert calm.ref.digest == battered.ref.digest
