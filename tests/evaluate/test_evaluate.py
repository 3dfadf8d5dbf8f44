"""Verdicts over real packages of the digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Product, Work
from modelyard.compress import CompressConfig, MeasureConfig, compress
from modelyard.datasets import Dataset
from modelyard.errors import DataError, NotFound, Refused
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.model_package import FLOAT_FORM, PACKAGE_FILE, TRANSFORM_FILE, ModelPackage, PackageSpec
from modelyard.preprocess import PreprocessConfig, SplitConfig, preprocess, snapshot
from modelyard.runtime import RuntimeSpec
from modelyard.serve.probe import read_golden, refuse_unless_golden
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.task_kinds import Target
from tasks.evaluate import _headline
from tests.test_model_package import save_linear
from tests.workbench import ORIGIN, blobs, digits_dataset, own_catalog, parquet_bytes, quick_model, upload

QUICK = CompressConfig(measure=MeasureConfig(repeats=1))
CONFIG = EvaluateConfig(floor=0.9, allowed_drop_against_float=0.02, explained_rows=0)


class Bench:
    """A data set, a good package and one that learned too little."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.catalog = own_catalog(settings)
        self.dataset_ref = digits_dataset(self.catalog)
        self.good, self.weak = (self._package(epochs) for epochs in (40, 6))
        self.dataset = Dataset.fetch(self.catalog, self.dataset_ref, folder, ["test"])

    def _package(self, epochs: int) -> ArtifactRef:
        model = quick_model(self.catalog, self.dataset_ref, epochs, max_shard_bytes=10_000)  # three files
        return compress(self.catalog, model, self.dataset_ref, QUICK, ORIGIN).ref

    def judge(
        self, candidate: ArtifactRef, champion: ArtifactRef | None = None, config: EvaluateConfig = CONFIG
    ) -> Product:
        return evaluate(self.catalog, candidate, self.dataset_ref, champion, config, ORIGIN)

    def read(self, product: Product, name: str) -> dict:
        return json.loads(self.catalog.read(product.ref, name))


@pytest.fixture(scope="module")
def bench(store: Store, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    del store  # it runs
    return Bench(settings, tmp_path_factory.mktemp("evaluate"))


def test_a_good_candidate_passes(bench: Bench):
    """Against the floor, its own float form and a weaker champion."""
    product = bench.judge(bench.good, bench.weak)
    assert refusal(product.manifest) is None
    facts = product.manifest.content.facts
    assert facts["passed"]
    assert set(facts["metrics"]) == {"candidate", "float", "champion"}
    assert facts["metrics"]["candidate"]["accuracy"] > facts["metrics"]["champion"]["accuracy"]
    verdict = bench.read(product, "verdict.json")
    assert [check["name"] for check in verdict["checks"]][1:] == [
        "accuracy", "accuracy against float", "accuracy against champion",
    ]  # fmt: skip
    assert verdict["subject"] == str(bench.good)
    assert verdict["inputs"]["champion"] == bench.weak.digest


def test_a_weak_candidate_is_refused_with_its_reasons(bench: Bench):
    """The refusal is a committed result; the exception made of it has every reason and the whole table."""
    product = bench.judge(bench.weak, bench.good)
    refused = refusal(product.manifest)
    assert isinstance(refused, Refused)
    assert len(refused.reasons) == 2
    assert "below the floor 0.9000" in refused.reasons[0]
    assert "against champion's" in refused.reasons[1]
    assert [row["result"] for row in refused.table] == ["passed", "REFUSED", "passed", "REFUSED"]
    assert bench.judge(bench.weak, bench.good).reused


def test_without_a_champion_there_is_nothing_to_drop_from(bench: Bench):
    """The first model of its name meets the other checks; with a champion it is other work."""
    alone, against = bench.judge(bench.good), bench.judge(bench.good, bench.weak)
    assert "champion" not in alone.manifest.content.facts["metrics"]
    assert len(bench.read(alone, "verdict.json")["checks"]) == 3
    assert alone.ref.uri != against.ref.uri


def test_numbers_are_those_of_scikit_learn(bench: Bench, tmp_path: Path):
    """Accuracy, F1, per class scores and the confusion matrix over the whole test split."""
    product = bench.judge(bench.good)
    bench.catalog.fetch(bench.good, tmp_path)
    truth, predicted = [], []
    for frame in bench.dataset.frames("test"):
        truth.extend(frame["label"])
        predicted.extend(ModelPackage.open(tmp_path).predict(frame)["label"])
    found = bench.read(product, "metrics.json")["candidate"]
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=found["classes"])
    assert found["rows"] == len(truth) == bench.dataset.num_rows("test")
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=found["classes"]).tolist()
    for name, expected in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        np.testing.assert_allclose(found["per_class"][name], expected)


def test_a_verdict_says_how_sure_it_is(bench: Bench):
    """Every score has an interval around it, and the better of two models is better with a probability."""
    verdict = bench.read(bench.judge(bench.good, bench.weak), "verdict.json")
    for role, score in verdict["scores"].items():
        assert score["low"] <= score["value"] <= score["high"], role
        assert score["low"] < score["high"]
    assert verdict["comparison"]["probability_better"] > 0.99
    assert verdict["comparison"]["difference"]["low"] > 0
    backwards = bench.read(bench.judge(bench.weak, bench.good), "verdict.json")["comparison"]
    assert backwards["probability_better"] < 0.01
    calm = verdict["disturbed"].pop("undisturbed")
    assert set(verdict["disturbed"]) == {"noise", "missing", "shuffled"}
    disturbed = [scores["candidate"] for scores in verdict["disturbed"].values()]
    assert 0.1 < min(disturbed) < calm["candidate"]


def test_slices_show_for_whom_it_is_wrong(bench: Bench):
    """Rows add up, the worst comes first with its interval, and a bound on slices names the one that broke it."""
    column = bench.dataset.transform.columns[20]
    config = CONFIG.model_copy(update={"slices": (column,), "slice_floor": 0.999})
    product = bench.judge(bench.weak, bench.good, config)
    slices = bench.read(product, "verdict.json")["slices"]
    assert sum(one["rows"] for one in slices) == bench.dataset.num_rows("test")
    assert [one["score"]["value"] for one in slices] == sorted(one["score"]["value"] for one in slices)
    worst = next(one for one in slices if one["is_decisive"])
    assert worst["score"]["low"] < worst["score"]["value"] < worst["score"]["high"]
    assert any(worst["name"] in reason for reason in refusal(product.manifest).reasons)


def test_slices_of_few_rows_are_shown_and_prove_nothing(bench: Bench):
    """Twenty-seven rows a label: each has its interval, the reader is told, and a bound on slices cannot be met."""
    config = CONFIG.model_copy(update={"slices": ("label",), "slice_floor": 0.1})
    product = bench.judge(bench.good, config=config)
    verdict = bench.read(product, "verdict.json")
    assert {one["is_decisive"] for one in verdict["slices"]} == {False}
    assert "fewer than 30 rows" in verdict["notes"][0]
    assert "could not be computed" in refusal(product.manifest).reasons[0]


def test_attacks_by_gradient_hurt_more_than_noise(bench: Bench):
    """Found in the trained network of each model, answered by the form that will be served; a bound on them refuses."""
    update = {"allowed_drop_under_attack": 0.001, "attack_strength": 0.3, "max_latency_ms": 60_000.0}
    config = CONFIG.model_copy(update=update)
    product = bench.judge(bench.good, bench.weak, config)
    verdict = bench.read(product, "verdict.json")
    attacked = verdict["attacked"]
    assert set(attacked) == {"undisturbed", "fgsm", "pgd"}
    assert attacked["undisturbed"] == verdict["disturbed"]["undisturbed"]
    for role, calm in attacked["undisturbed"].items():
        assert attacked["pgd"][role] <= attacked["fgsm"][role] < calm - 0.05
    assert "under attack (pgd)" in refusal(product.manifest).reasons[-1]
    latency = verdict["checks"][-1]
    assert latency["passed"]
    assert 0 < latency["value"] < 1000
    assert verdict["notes"] == []


def test_without_its_trained_network_a_model_is_attacked_by_tries(bench: Bench):
    """The verdict says so, and why; a bound against a champion that was attacked otherwise cannot be met."""
    weight = np.random.default_rng(0).normal(size=(64, 10))
    orphan = _package(bench, "orphan", weight, bench.dataset.target, bench.dataset.transform.columns)
    config = EvaluateConfig(floor=0, explained_rows=50, allowed_drop_under_attack_against_champion=1.0,
                            allowed_drop_against_champion=1.0)  # fmt: skip
    product = bench.judge(orphan, bench.good, config)
    verdict = bench.read(product, "verdict.json")
    assert set(verdict["attacked"]["random signs"]) == {"candidate", "float"}
    assert verdict["attacked"]["random signs"]["candidate"] <= verdict["attacked"]["undisturbed"]["candidate"]
    assert verdict["notes"] == [
        "the candidate was attacked by tries alone, without gradients: its package names no trained network"
    ]
    assert "could not be computed" in refusal(product.manifest).reasons[0]
    explained = bench.read(product, "explanations.json")
    assert explained["attribution"]["method"] == "ablation"
    assert set(explained["attribution"]["by_class"]) <= {str(digit) for digit in range(10)}
    assert any(one["attribution"] for one in explained["worst"])
    assert "so there are no gradients" in " ".join(bench.catalog.read(product.ref, "report.html").decode().split())


def test_answers_are_explained(bench: Bench):
    """Pixels that decide lie inside the image, every class has a map, and the page and the card show it."""
    config = CONFIG.model_copy(update={"explained_rows": 100})
    product = bench.judge(bench.good, config=config)
    found = bench.read(product, "explanations.json")
    assert found["grid"] == [8, 8]
    assert set(found["attribution"]["by_class"]) == {str(digit) for digit in range(10)}
    assert found["attribution"]["completeness"]["mean"] < 0.01
    importance = np.reshape(found["importance"], (8, 8))
    assert importance[:, 2:6].sum() > importance[:, [0, 7]].sum()
    page = bench.catalog.read(product.ref, "report.html").decode()
    assert "data:image/png;base64," in page
    assert "What it looks at" in bench.catalog.read(product.ref, "model-card.md").decode()


def test_a_card_travels_with_the_verdict(bench: Bench):
    """Digests, data, scores with their interval, weak spots, licence and outcome, for people."""
    config = CONFIG.model_copy(update={"slices": ("label",), "licence": "CC BY 4.0"})
    card = bench.catalog.read(bench.judge(bench.good, config=config).ref, "model-card.md").decode()
    for words in [bench.good.digest, bench.dataset_ref.digest, "predicts `label`", "95 % interval of accuracy",
                  "- label = ", "licence: CC BY 4.0", "intended use: not stated", "passed every check"]:  # fmt: skip
        assert words in card


def test_a_pickle_is_refused_by_name(bench: Bench):
    """A package with a file that could run code is not even fetched."""

    def build(attempt: Attempt) -> None:
        attempt.add_bytes("model.pkl", b"cos\nsystem\n(S'true'\ntR.")

    work = Work(kind="compressed", config={"name": "pickled"}, inputs={}, code_version="test")
    pickled = bench.catalog.produce(work, build, ORIGIN).ref
    with pytest.raises(DataError, match=r"the package holds model\.pkl: only"):
        bench.judge(pickled)


def test_an_override_lets_pass_and_stays_on_record(bench: Bench):
    """The verdict keeps its reasons, and names the person and the reason; the stage no longer refuses."""
    update = {"override_by": "Ada Lovelace", "override_reason": "a demonstration on a closed network"}
    product = bench.judge(bench.weak, bench.good, CONFIG.model_copy(update=update))
    assert refusal(product.manifest) is None
    verdict = bench.read(product, "verdict.json")
    assert not verdict["passed"]
    assert len(verdict["reasons"]) == 2
    assert verdict["override"] == {"by": "Ada Lovelace", "reason": "a demonstration on a closed network"}
    page = bench.catalog.read(product.ref, "report.html").decode()
    assert "Let through by Ada Lovelace" in page


def test_golden_rows_are_what_the_endpoint_probes_with(bench: Bench, tmp_path: Path):
    """The same form answers them within the tolerance; another model does not."""
    product = bench.judge(bench.good)
    for name, ref in {"verdict": product.ref, "good": bench.good, "weak": bench.weak}.items():
        bench.catalog.fetch(ref, tmp_path / name)
    golden = read_golden(tmp_path / "verdict")
    rows = np.array(golden.rows)
    assert rows.shape == (16, 64)
    assert len(np.unique(rows, axis=0)) == 16
    assert golden.form == "int8"
    assert golden.tolerance == pytest.approx(CONFIG.golden_tolerance * np.abs(golden.outputs).max())
    refuse_unless_golden("x", golden, "int8", ModelPackage.open(tmp_path / "good").outputs(rows))
    alone = np.concatenate([ModelPackage.open(tmp_path / "good").outputs(row[None]) for row in rows])
    refuse_unless_golden("x", golden.model_copy(update={"tolerance": 1e-6}), "int8", alone)  # whatever their company
    with pytest.raises(Refused, match="golden rows differ"):
        refuse_unless_golden("x", golden, "int8", ModelPackage.open(tmp_path / "weak").outputs(rows))


def test_another_form_can_be_judged(bench: Bench):
    """Judging the float form compares it with itself; an unknown form is an error."""
    product = bench.judge(bench.good, config=CONFIG.model_copy(update={"form": FLOAT_FORM}))
    metrics = product.manifest.content.facts["metrics"]
    assert metrics["candidate"] == metrics["float"]
    assert bench.read(product, "golden.json")["form"] == FLOAT_FORM
    with pytest.raises(NotFound, match="int8"):
        bench.judge(bench.good, config=CONFIG.model_copy(update={"form": "int3"}))


def test_the_same_work_has_the_same_digest(bench: Bench, settings: Settings):
    """Judged again elsewhere, on copies, the verdict is the same artifact."""
    product = bench.judge(bench.good)
    elsewhere = own_catalog(settings)
    copies = [_copy(bench.catalog, ref, elsewhere) for ref in (bench.good, bench.dataset_ref)]
    again = evaluate(elsewhere, *copies, None, CONFIG, ORIGIN)
    assert not again.reused
    assert again.ref.digest == product.ref.digest


def _copy(source: Catalog, ref: ArtifactRef, target: Catalog) -> ArtifactRef:
    """An artifact carried to another catalog, file by file."""
    manifest = source.manifest(ref)
    uri = f"{target.store.root}/{ref.kind}"
    for name in manifest.content.files:
        target.store.put(f"{uri}/{manifest.file_path(name)}", source.read(ref, name))
    target.store.put(f"{uri}/manifest.json", manifest.model_dump_json().encode())
    return target.resolve(uri)


def _package(
    bench: Bench, name: str, weight: np.ndarray, target: Target, columns: list[str], dataset: Dataset | None = None
) -> ArtifactRef:
    """A package of one matrix, for what no honest training produces."""
    spec = PackageSpec(
        target=target,
        forms={FLOAT_FORM: RuntimeSpec(file="float.onnx", precision="fp32")},
        default_form=FLOAT_FORM,
    )
    transform = (dataset or bench.dataset).transform.model_dump()
    for feature, column in zip(transform["features"], columns, strict=True):
        feature["name"] = column

    def build(attempt: Attempt) -> None:
        save_linear(attempt.scratch / "float.onnx", weight)
        attempt.add("float.onnx", attempt.scratch / "float.onnx")
        attempt.add_json(PACKAGE_FILE, spec.model_dump(mode="json"))
        attempt.add_json(TRANSFORM_FILE, transform)

    work = Work(kind="compressed", config={"name": name}, inputs={}, code_version="test")
    return bench.catalog.produce(work, build, ORIGIN).ref


def test_outputs_that_are_no_numbers_are_refused(bench: Bench):
    """A network of NaN gets a verdict like any other, not a crash on the way to JSON."""
    weight = np.full((64, 10), np.nan)
    broken = _package(bench, "nan", weight, bench.dataset.target, bench.dataset.transform.columns)
    product = bench.judge(broken, config=CONFIG.model_copy(update={"explained_rows": 10}))
    refused = refusal(product.manifest)
    assert refused is not None
    assert "finite outputs 0.0000" in refused.reasons[0]
    assert "loss" not in product.manifest.content.facts["metrics"]["candidate"]
    assert "nothing is explained" in bench.read(product, "verdict.json")["notes"][-2]


def test_numbers_that_are_none_are_refused_too(bench: Bench, tmp_path: Path):
    """A regression of NaN has neither score nor interval, disturbed or not, in no slice: null in the documents, a bound on any of it
    refuses, and the page and the headline are there."""
    frame = blobs(400).astype({"kind": float})
    folder = upload(bench.catalog.store, {"blobs.parquet": parquet_bytes(frame)})
    number = PreprocessConfig(target="kind", task="regression", split=SplitConfig(train=0.4, validation=0.1, test=0.5))
    ref = preprocess(bench.catalog, snapshot(bench.catalog, folder, ORIGIN).ref, number, ORIGIN).ref
    dataset = Dataset.fetch(bench.catalog, ref, tmp_path, ["test"])
    broken, zero = (
        _package(bench, name, np.full((2, 1), value), dataset.target, ["a", "b"], dataset)
        for name, value in (("nan number", np.nan), ("zero", 0.0))
    )
    update = {"slices": ("a",), "slice_floor": 0.0, "allowed_drop_when_disturbed": 1.0, "ceilings": {"rmse": 9.0}}
    config = EvaluateConfig(metric="r2", floor=0.0, explained_rows=20, **update)
    product = evaluate(bench.catalog, broken, ref, zero, config, ORIGIN)
    verdict = bench.read(product, "verdict.json")
    assert len([reason for reason in verdict["reasons"] if "could not be computed" in reason]) == 6
    assert set(verdict["scores"]) == {"champion"}
    assert (verdict["comparison"], verdict["slices"], verdict["disturbed"]["noise"]["candidate"]) == (None, [], None)
    assert any("no score could be computed of" in note for note in verdict["notes"])
    assert "could not be computed" in bench.catalog.read(product.ref, "report.html").decode()
    assert "unknown when disturbed" in bench.catalog.read(product.ref, "model-card.md").decode()
    assert _headline(product, "r2", refusal(product.manifest)) == "r2 unknown, refused"
    assert evaluate(bench.catalog, zero, ref, broken, config, ORIGIN).manifest.content.facts["metrics"]["candidate"]


def test_a_champion_that_cannot_be_judged_refuses(bench: Bench):
    """Other classes, other columns, gone or altered: a sentence in a verdict that refuses, which a person may override."""
    columns, weight = bench.dataset.transform.columns, np.zeros((64, 3))
    letters = _package(bench, "letters", weight, Target(column="letter", classes=["a", "b", "c"]), columns)
    numbered = [f"p{number}" for number in range(64)]
    renamed, gone, altered = (
        _package(bench, name, np.zeros((64, 10)), bench.dataset.target, numbered)
        for name in ("renamed", "gone", "altered")
    )
    for ref, body in ((gone, None), (altered, b"else")):
        uri = bench.catalog.manifest(ref).file_uri(ref.uri, "float.onnx")
        bench.catalog.store.put(uri, body) if body else bench.catalog.store.delete([uri])
    sentences = {
        letters: "the champion cannot be judged on this data set: it predicts 'letter' as one of 3 classes (a, b, c)",
        renamed: "it takes columns that the set lacks: p0",
        gone: "float.onnx: no such object",
        altered: "float.onnx: sha256 is",
    }
    for champion, words in sentences.items():
        product = bench.judge(bench.good, champion)
        (reason,) = refusal(product.manifest).reasons
        assert words in reason
        assert set(product.manifest.content.facts["metrics"]) == {"candidate", "float"}
    update = {"override_by": "Ada Lovelace", "override_reason": "the old one spelled letters"}
    assert refusal(bench.judge(bench.good, letters, CONFIG.model_copy(update=update)).manifest) is None
