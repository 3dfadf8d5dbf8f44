"""The commands around a run, as a person types them, after `modelyard run` of the digits."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from modelyard.catalog import Catalog
from modelyard.sample_data import digits_parquet
from modelyard.storage import Store
from tasks.results import PredictResult
from tests.conftest import Installation
from tests.e2e.driving import finished, modelyard, result_of, trigger
from tests.e2e.test_recovery import digits_state

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def test_predict_asks_about_held_out_rows_or_a_file(last_run: dict, tmp_path: Path):
    """Both show labels, the version that answered and the digest to trace."""
    held_out = modelyard("predict", "digits", "--rows", "3")
    assert held_out.returncode == 0, held_out.stderr
    assert "truth" in held_out.stdout
    assert "modelyard trace" in held_out.stdout
    name, body = digits_parquet()[0]
    (tmp_path / name).write_bytes(body)
    of_file = modelyard("predict", "digits", str(tmp_path / name), "--rows", "2")
    assert of_file.returncode == 0, of_file.stderr
    assert "version" in of_file.stdout


def test_predict_names_what_is_missing(last_run: dict, tmp_path: Path):
    """An unknown model, a missing file or column is one sentence."""
    pd.DataFrame({"other": [1.0]}).to_csv(tmp_path / "rows.csv", index=False)
    for arguments, words in [
        (["nobody"], "serves no model 'nobody'"),
        (["digits", str(tmp_path / "none.csv")], "no such file"),
        (["digits", str(tmp_path / "rows.csv")], "columns are missing"),
    ]:
        asked = modelyard("predict", *arguments)
        assert asked.returncode == 1
        assert words in asked.stderr
        assert "Traceback" not in asked.stderr


def test_put_uploads_files_or_nothing(stack: Installation, tmp_path: Path):
    """Files land below the folder under their names; one that is missing stops all of them."""
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    done = modelyard("put", str(tmp_path / "rows.csv"), "--to", "raw/put")
    assert done.returncode == 0, done.stderr
    store = Store(stack.settings)
    assert store.get(f"{store.root}/raw/put/rows.csv") == b"a,b\n1,2\n"
    refused = modelyard("put", str(tmp_path / "rows.csv"), str(tmp_path / "none.csv"), "--to", "raw/nothing")
    assert refused.returncode == 1
    assert "none.csv" in refused.stderr
    assert not list(store.list(f"{store.root}/raw/nothing"))


def test_trace_gives_whole_lines_to_a_pipe(last_run: dict):
    """No digest and no address is cut where nobody sees a terminal's edge."""
    told = modelyard("trace", "digits@champion")
    assert told.returncode == 0, told.stderr
    assert any(
        "/runs/flow-run/" in line and len(line.rpartition("/")[2].strip()) == 36 for line in told.stdout.splitlines()
    )


@pytest.mark.soak
def test_a_data_set_is_answered_without_the_endpoint(
    stack: Installation, last_run: dict, prefect_client: SyncPrefectClient
):
    """The deployment answers the test split with the champion, as Parquet beside its lineage; again, it is found."""
    run = finished(
        prefect_client, trigger(prefect_client, "predict/digits", dataset=last_run["artifacts"]["dataset"]["digest"])
    )
    assert run.state.is_completed(), run.state.message
    done = PredictResult.model_validate(result_of(stack, run)).predictions
    store = Store(stack.settings)
    parts = [f"{done.uri}/part-{number:06d}.parquet" for number in range(done.num_parts)]
    table = pd.concat([pd.read_parquet(BytesIO(store.get(part))) for part in parts])
    assert len(table) == done.num_rows > 200
    assert set(table) == {"row", "label", "probability"}
    manifest = json.loads(store.get(f"{done.uri}/manifest.json"))
    assert manifest["package"]["digest"] == digits_state(stack).stable.artifact.digest
    assert manifest["flow_run_id"] == str(run.id)


@pytest.mark.soak
def test_run_of_one_stage_trains_a_language_model(stack: Installation):
    """`modelyard run text --deployment train/text` places the sample texts, preprocesses and trains, and says where the
    model is; what it has written is there to read. `--deployment evaluate/text` finds that model and judges it."""
    tiny = ["train.model.layers=1", "train.model.width=24", "train.stop.max_steps=4", "train.ranks=1",
            "preprocess.transform.tokens.vocabulary=300"]  # fmt: skip
    sets = [word for key in tiny for word in ("--set", key)]
    ran = modelyard("run", "text", "--deployment", "train/text", *sets)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines() if line.startswith(("train ", "artifact ")))
    assert re.match(r"bits_per_byte \d\.\d{4} after .* \(stop\.max_steps\)", said["train"])
    catalog = Catalog(Store(stack.settings))
    files = catalog.manifest(catalog.resolve(said["artifact"])).content.files
    assert {"model.safetensors", "config.json", "tokenizer.json", "samples.md"} <= set(files)
    client = MlflowClient()
    written = client.list_artifacts(re.search(r"/runs/(\w+)", ran.stdout[ran.stdout.index("MLflow run") :])[1])
    assert {"samples.md", "training.png"} <= {file.path for file in written}
    judged = modelyard("run", "text", "--deployment", "evaluate/text", *sets, "--set", "evaluate.ceiling=9")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert re.search(r"evaluate .*bits_per_byte \d\.\d{4} \(.* to .*\), passed", judged.stdout), judged.stdout
