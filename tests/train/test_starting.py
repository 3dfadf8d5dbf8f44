"""Trainings that begin with another model's weights, keep its zeros, or learn from its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE, Dataset
from modelyard.errors import ConfigError, DigestMismatch, Preempted
from modelyard.models import MlpConfig, ModelSpec
from modelyard.models.build import build_model, load_model, save_model
from modelyard.models.weights import WEIGHTS_FILE
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.task_kinds import NO_TOKEN, Target
from modelyard.train import (
    DistillConfig,
    HiddenConfig,
    InitConfig,
    OptimizerConfig,
    StopConfig,
    TrainConfig,
    train,
    trained_model,
)
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.distillation import Teacher, lesson_of, soft_cross_entropy, soft_token_cross_entropy
from modelyard.train.precision import Precision
from modelyard.train.rows import Split
from modelyard.train.stage import training_work
from modelyard.train.starting import Parent, Parents
from modelyard.transform import FittedTransform
from tests.train import runs
from tests.train.ranks import Ranks
from tests.train.test_resume import assert_same
from tests.workbench import quick_model

SIZES = (24,)
# Everything at once: a mask, a teacher and a projection of its states, momentum in two optimizers, dropout of the student alone.
BOTH = TrainConfig(
    model=MlpConfig(hidden_sizes=(7,)),  # which the starting model's network takes the place of
    init=InitConfig(keep_zeros=True),
    distill=DistillConfig(temperature=3.0, weight=0.5, hidden=HiddenConfig()),
    optimizer=OptimizerConfig(name="muon", learning_rate=0.01, weight_decay=0.01),
    max_epochs=2,
    stop=StopConfig(max_steps=30),
    silence_seconds=60,
)


@pytest.fixture(scope="module")
def teacher(catalog: Catalog, dataset: ArtifactRef) -> ArtifactRef:
    return quick_model(catalog, dataset, epochs=60)


@pytest.fixture(scope="module")
def pruned(catalog: Catalog, dataset: ArtifactRef) -> ArtifactRef:
    """A small untrained network, half of whose weights are zero."""
    return publish(catalog, dataset)


def publish(catalog: Catalog, dataset: ArtifactRef, target: dict[str, Any] | None = None) -> ArtifactRef:
    """A model artifact with half of its weights zero; ``target`` changes what it says it answers."""
    transform, schema = catalog.read(dataset, TRANSFORM_FILE), catalog.read(dataset, TARGET_FILE)
    schema = Target.model_validate_json(schema).model_copy(update=target or {}).model_dump_json().encode()

    def build(attempt: Attempt) -> None:
        spec = ModelSpec(model=MlpConfig(hidden_sizes=SIZES), input_width=64, output_width=10)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            weights = build_model(spec.model, 64, 10).state_dict()
            halved = {name: weight * (torch.rand_like(weight) < 0.5) for name, weight in weights.items()}
        for name in save_model(spec, halved, attempt.scratch):
            attempt.add(name, attempt.scratch / name)
        attempt.add_bytes(TRANSFORM_FILE, transform)
        attempt.add_bytes(TARGET_FILE, schema)

    work = Work(kind="model", config={"half": str(target)}, inputs={"dataset": dataset}, code_version="test")
    return catalog.produce(work, build, Origin()).ref


def network(catalog: Catalog, ref: ArtifactRef, folder: Path) -> nn.Module:
    catalog.fetch(ref, folder / ref.digest)
    return load_model(folder / ref.digest)


def accuracy(of: nn.Module, data: Dataset) -> float:
    features, targets = data.load("validation")
    with torch.no_grad():
        return float(np.mean(of(torch.from_numpy(features)).argmax(1).numpy() == targets))


@pytest.mark.soak
def test_training_begins_with_another_models_network_and_zeros(
    catalog: Catalog, dataset: ArtifactRef, teacher: ArtifactRef, pruned: ArtifactRef, tmp_path: Path
):
    """Its shapes win over the config's, its zeros stay zero while the rest moves, and both models are inputs of the
    artifact: named again, the same work is found. What is published scores what the manifest says."""
    config = BOTH.model_copy(update={"ranks": 1, "stop": StopConfig(), "max_epochs": 6})
    product = train(catalog, dataset, config, Origin(), init=pruned, teacher=teacher)
    content = product.manifest.content
    assert content.inputs == {"dataset": dataset.digest, "init": pruned.digest, "teacher": teacher.digest}
    assert "model" not in content.config
    before, after = network(catalog, pruned, tmp_path), network(catalog, product.ref, tmp_path)
    for name, weight in before.named_parameters():
        changed = after.get_parameter(name)
        assert bool((changed != weight).any())
        if weight.ndim > 1:
            assert bool((weight == 0).any())
            assert torch.equal(changed == 0, weight == 0), name
    data = Dataset.fetch(catalog, dataset, tmp_path / "data", ["validation"])
    assert accuracy(after, data) > accuracy(before, data) + 0.5
    assert accuracy(after, data) == pytest.approx(content.facts["metrics"]["accuracy"])
    # Its name today, the network that it takes the place of and what is operational do not count: no rank is started.
    said = {"init": InitConfig(model="any@name", keep_zeros=True), "model": MlpConfig(), "max_restarts": 1}
    renamed = config.model_copy(update=said)
    again = train(catalog, dataset, renamed, Origin(), _no_rank, init=pruned, teacher=teacher)
    assert again.reused
    assert again.ref == product.ref
    assert not keys_agree(catalog, dataset, renamed, teacher, pruned)


def keys_agree(
    catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, one: ArtifactRef, other: ArtifactRef
) -> bool:
    """Whether trainings that begin with one or the other model are the same work."""
    works = [training_work(dataset, config, Parents.read(catalog, config, ref, None)) for ref in (one, other)]
    return works[0].key == works[1].key


def assembled(
    settings: Settings, spec: RankSpec, at_step: int | None = None
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train as a rank does, to the end or to a step that is saved; validations and weights."""
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    if at_step is None:
        made.fit()
    else:
        runs.stop_after(made, at_step)
        with pytest.raises(Preempted, match="is saved"):
            made.fit()
    return made.progress.validations, {name: value.numpy() for name, value in runs.weights(made).items()}


@pytest.mark.parametrize(("strategy", "optimizer"), [("ddp", "muon"), ("fsdp", "adamw")])
def test_it_resumes_to_the_bit(
    pair: Ranks, settings: Settings, store: Store, dataset: ArtifactRef, teacher: ArtifactRef, pruned: ArtifactRef,
    folder: str, strategy: str, optimizer: str,
):  # fmt: skip
    """Stopped in mid-epoch and gone on with: the same bits as undisturbed, and the same zeros, sharded or not."""
    own = OptimizerConfig(name=optimizer, learning_rate=0.01, weight_decay=0.01)
    config = BOTH.model_copy(update={"strategy": strategy, "optimizer": own})

    def spec(name: str) -> RankSpec:
        checkpoints = f"{store.root}/tests/{folder}/{name}"
        return RankSpec(dataset=dataset, config=config, checkpoints=checkpoints, init=pruned, teacher=teacher)

    halfway = pair.run(assembled, settings, spec("a"), 13)[0]
    resumed, unbroken = pair.run(assembled, settings, spec("a"))[0], pair.run(assembled, settings, spec("b"))[0]
    assert_same(resumed, unbroken)
    weights = [name for name in unbroken[1] if name.endswith("weight")]
    for name in weights:
        assert 0.4 < np.mean(unbroken[1][name] == 0) < 0.6
        np.testing.assert_array_equal(halfway[1][name] == 0, unbroken[1][name] == 0)


# -- teachers -----------------------------------------------------------------------------------------


def test_soft_cross_entropy_is_hintons():
    """T^2 times the divergence of the softened distributions, summed over rows, against scipy; 0 where they agree, and for a
    rank without rows."""
    draw = np.random.default_rng(0)
    student, taught = draw.normal(size=(5, 4)), draw.normal(size=(5, 4))
    soft, wanted = log_softmax(student / 3, axis=1), log_softmax(taught / 3, axis=1)
    expected = 9 * (np.exp(wanted) * (wanted - soft)).sum()
    found = soft_cross_entropy(torch.from_numpy(student), torch.from_numpy(taught), 3.0)
    assert float(found) == pytest.approx(expected)
    assert float(soft_cross_entropy(torch.empty(0, 7, 4), torch.empty(0, 7, 4), 3.0)) == 0
    assert float(soft_cross_entropy(torch.from_numpy(taught), torch.from_numpy(taught), 3.0)) == pytest.approx(0)


def test_tokens_that_nobody_asks_about_teach_nothing():
    """Of each row the mean over its tokens that are asked about, each as an answer of its own; none for a row without any,
    and what fills up a batch changes nothing."""
    draw = torch.Generator().manual_seed(0)
    student, taught = (torch.randn(3, 4, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    targets = torch.tensor([[NO_TOKEN, 1, 2, NO_TOKEN], [0, NO_TOKEN, NO_TOKEN, NO_TOKEN], [NO_TOKEN] * 4])
    single = [float(soft_cross_entropy(student[at], taught[at], 2.0)) for at in [(0, [1]), (0, [2]), (1, [0])]]
    expected = (single[0] + single[1]) / 2 + single[2]
    assert float(soft_token_cross_entropy(student, taught, targets, 2.0)) == pytest.approx(expected)
    cut = (student[:, :3], taught[:, :3], targets[:, :3])
    assert float(soft_token_cross_entropy(*cut, 2.0)) == pytest.approx(expected)
    none = student[:0], taught[:0], targets[:0]
    assert float(soft_token_cross_entropy(*none, 2.0)) == 0


def taught(settings: Settings, folder: str, weight: float) -> float:
    """Train a student on wrong labels beside a teacher that knows; its accuracy on the right ones."""
    right = runs.blobs()
    wise = nn.Linear(runs.WIDTH, runs.CLASSES)
    optimizer = torch.optim.Adam(wise.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(wise(right.features), right.targets).backward()
        optimizer.step()
    wrong = Split(features=right.features, targets=(right.targets + 1) % runs.CLASSES)
    config = runs.PLAIN.model_copy(
        update={
            "max_epochs": 10,
            "distill": DistillConfig(weight=weight),
            "optimizer": OptimizerConfig(learning_rate=0.01),
        }
    )
    made = runs.trainer(settings, folder, config, train=wrong)
    loss = Precision("fp32", runs.CPU)
    made.stepper._teacher = Teacher(
        wise, runs.CPU, config.distill, lesson=lesson_of("cross_entropy", config), precision=loss
    )
    made.fit()
    made.stepper.network.eval()
    return float((made.stepper.outputs(right.features).argmax(1) == right.targets).float().mean())


def test_a_student_learns_from_its_teacher(alone: Ranks, settings: Settings, folder: str):
    """The weight says whom it believes: the teacher, or labels that are all wrong."""
    assert alone.run(taught, settings, f"{folder}/a", 1.0)[0] > 0.9
    assert alone.run(taught, settings, f"{folder}/b", 0.01)[0] < 0.1


def test_a_teachers_number_is_brought_into_the_students_units():
    """Each regression is standardised by its own training rows; a teacher's answer counts in the student's units."""
    same = nn.Linear(1, 1)
    nn.init.ones_(same.weight)
    nn.init.zeros_(same.bias)
    own, its = (2.0, 4.0), (10.0, 8.0)  # mean and deviation
    precision = Precision("fp32", runs.CPU)
    learned, shift = lesson_of("mean_squared_error", TrainConfig()), (its[0] - own[0]) / own[1]
    guide = Teacher(same, runs.CPU, DistillConfig(weight=1.0), lesson=learned, precision=precision,
                    scale=its[1] / own[1], shift=shift)  # fmt: skip
    features = torch.tensor([[0.5]])  # the teacher says 10 + 0.5 * 8 = 14, which is (14 - 2) / 4 = 3 for the student
    said, label = torch.tensor([[3.0]]), torch.zeros(1)
    assert float(guide.mixed(torch.zeros(()), said, label, features)) == pytest.approx(0)
    assert float(guide.mixed(torch.zeros(()), said + 2, label, features)) == pytest.approx(4)


def own_inputs(settings: Settings, spec: RankSpec) -> tuple[np.ndarray, np.ndarray | None]:
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    features, _, seen = made.train.batch(torch.arange(len(made.train)))
    return features.numpy(), None if seen is None else seen.numpy()


def test_a_teacher_sees_rows_as_its_own_transform_makes_them(
    alone: Ranks, settings: Settings, catalog: Catalog, store: Store, dataset: ArtifactRef, teacher: ArtifactRef,
    folder: str,
):  # fmt: skip
    """One that was fitted on other rows scales them otherwise; one of the same data set shares the student's inputs."""
    halved = fitted_elsewhere(catalog, dataset, teacher)
    config = runs.PLAIN.model_copy(update={"batch_size": 64})
    checkpoints = f"{store.root}/tests/{folder}"
    specs = [
        RankSpec(dataset=dataset, config=config, checkpoints=checkpoints, teacher=ref) for ref in (teacher, halved)
    ]
    (features, shared), (_, own) = (alone.run(own_inputs, settings, spec)[0] for spec in specs)
    assert shared is None
    np.testing.assert_allclose(own, features * 2, rtol=1e-6)


def fitted_elsewhere(catalog: Catalog, dataset: ArtifactRef, model: ArtifactRef) -> ArtifactRef:
    """The same model with every scale halved."""
    transform = FittedTransform.model_validate_json(catalog.read(dataset, TRANSFORM_FILE))
    features = [feature.model_copy(update={"scale": feature.scale / 2}) for feature in transform.features]

    def build(attempt: Attempt) -> None:
        for name in catalog.manifest(model).content.files:
            attempt.add_bytes(name, catalog.read(model, name))
        attempt.add_bytes(TRANSFORM_FILE, FittedTransform(features=features).model_dump_json().encode())

    return catalog.produce(
        Work(kind="model", config={}, inputs={"of": model}, code_version="test"), build, Origin()
    ).ref


# -- what is refused ----------------------------------------------------------------------------------


def test_a_package_stands_for_the_model_it_was_made_from(catalog: Catalog, pruned: ArtifactRef):
    """What is registered is a package; training goes on from its trained parent."""
    work = Work(kind="compressed", config={"of": pruned.digest}, inputs={"model": pruned}, code_version="test")
    package = catalog.produce(work, lambda attempt: attempt.add_bytes("package.json", b"{}"), Origin()).ref
    assert trained_model(catalog, package) == pruned
    assert trained_model(catalog, pruned) == pruned


@pytest.mark.parametrize(("target", "words"), [
    ({"task": "regression", "classes": []}, r"train\.init\.model: model@\w+ is for regression, the data set for classif"),
    ({"classes": [*range(9), "ten"]}, r"train\.init\.model: model@\w+ has other classes: its ten against the data set's 9"),
])  # fmt: skip
def test_a_model_for_another_question_starts_no_rank(
    catalog: Catalog, dataset: ArtifactRef, target: dict[str, Any], words: str
):
    """Another task or other classes: the outputs would mean something else."""
    other = publish(catalog, dataset, target)
    with pytest.raises(ConfigError, match=words):
        train(catalog, dataset, BOTH, Origin(), _no_rank, init=other)


def _no_rank(event: object) -> None:
    pytest.fail(f"a rank was started: {event}")


def test_a_model_of_other_columns_or_widths_is_refused(catalog: Catalog, dataset: ArtifactRef, pruned: ArtifactRef):
    """The sentence names the columns, or both numbers of inputs."""
    parent = Parent.read(catalog, pruned, "train.distill.teacher")
    features = parent.transform.features
    renamed = FittedTransform(features=[features[0].model_copy(update={"name": "else"}), *features[1:]])
    with pytest.raises(
        ConfigError, match=r"train\.distill\.teacher: .*other columns: its pixel_0_0 against the data set's else"
    ):
        parent.require_fit(renamed, parent.target)
    fewer = FittedTransform(features=features, selected=[0, 1, 2])
    with pytest.raises(ConfigError, match="takes 64 inputs, this data set's columns become 3"):
        parent.require_fit(fewer, parent.target)


def test_what_is_no_model_or_has_no_zeros_is_refused(
    catalog: Catalog, dataset: ArtifactRef, alone: Ranks, settings: Settings, teacher: ArtifactRef, folder: str
):
    """A data set is no model; zeros can be kept only of a model that has some."""
    with pytest.raises(ConfigError, match=r"train\.distill\.teacher: dataset@\w+ is a dataset; name a trained model"):
        train(catalog, dataset, BOTH, Origin(), _no_rank, init=teacher, teacher=dataset)
    with pytest.raises(ConfigError, match=r"train\.init\.keep_zeros: random weights have no zeros"):
        train(catalog, dataset, BOTH, Origin(), _no_rank)
    (sentence,) = alone.run(
        refused, settings, RankSpec(dataset=dataset, config=BOTH, checkpoints=folder, init=teacher), ConfigError
    )
    assert sentence == "train.init.keep_zeros: the starting weights have no zeros to keep; leave it out"


def test_an_altered_starting_model_is_not_used(
    catalog: Catalog, dataset: ArtifactRef, alone: Ranks, settings: Settings, folder: str
):
    """Its weights are compared with its manifest before a rank loads them; the sentence names the file."""
    altered = publish(catalog, dataset, {"column": "digit"})
    path = catalog.manifest(altered).file_path(WEIGHTS_FILE)
    body = bytearray(catalog.store.get(f"{altered.uri}/{path}"))
    body[-1] ^= 1
    catalog.store.put(f"{altered.uri}/{path}", bytes(body))
    spec = RankSpec(dataset=dataset, config=BOTH, checkpoints=folder, init=altered)
    (sentence,) = alone.run(refused, settings, spec, DigestMismatch)
    assert f"{WEIGHTS_FILE}: sha256 is " in sentence


def refused(settings: Settings, spec: RankSpec, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        assembled(settings, spec)
    return str(caught.value)
