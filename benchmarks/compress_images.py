"""Two small networks for images, trained in this run, and what the techniques of the compress stage make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from benchmarks.compress_peers import PEERS, SAMPLES, quantized_by
from benchmarks.figures import Figure, Findings
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin, Product
from modelyard.compress import CompressConfig, Distil, MeasureConfig, PruneUnits, SearchConfig, StaticInt8, candidates
from modelyard.compress.candidates import FORM_FILE, Bench
from modelyard.compress.export import INPUT
from modelyard.compress.outcomes import Recipe
from modelyard.compress.rows import Rows
from modelyard.compress.workshop import Workshop
from modelyard.model_package import FLOAT_FORM
from modelyard.models import CnnConfig, MlpConfig
from modelyard.preprocess import PreprocessConfig, snapshot
from modelyard.preprocess import preprocess as prepare
from modelyard.runtime import RuntimeSpec, open_runtime
from modelyard.train import DistillConfig, OptimizerConfig, ScheduleConfig, TrainConfig, train

SIDE, QUICK_ROWS = 28, 2_000
PERCEPTRON, CONVOLUTIONAL = "784-128-10", "cnn 16-32-128"
INT8, PRUNED, STUDENT = "int8", "units-0.5", "student"
# What leaves a quarter of the weights: they grow with the width of one hidden layer, and with its square of several.
STUDENT_WIDTHS = {PERCEPTRON: 0.25, CONVOLUTIONAL: 0.5}
# The more rows, the closer a narrow student comes: with 24,000 the perceptron's learns them by heart.
ROWS = {PERCEPTRON: 48_000, CONVOLUTIONAL: 24_000}
# Largest loss of accuracy, as the ratio of two accuracies near 1.
LOSS_LIMITS = {INT8: 0.998, PRUNED: 0.995, STUDENT: 0.99}
PARAMETER_LIMITS = {PRUNED: 0.51, STUDENT: 0.26}
BASE = TrainConfig(
    model=MlpConfig(hidden_sizes=(128,), dropout=0.2),
    optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
    batch_size=128,
    max_epochs=10,
    ranks=1,
)
NETWORKS = {
    PERCEPTRON: BASE,
    CONVOLUTIONAL: BASE.model_copy(
        update={"model": CnnConfig(kind="cnn", image=(SIDE, SIDE)), "max_epochs": BASE.max_epochs // 2}
    ),
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """What became of one technique, on the validation split."""

    accuracy: float
    size_bytes: int
    parameters: int | None = None
    macs: int | None = None
    bound: float | None = None


def run(catalog: Catalog, scratch: Path, network: str, quick: bool) -> Findings:
    """Measure one network. Drops are on the validation split, between forms of the network that was trained in this run."""
    word = network.split(maxsplit=1)[0]
    dataset = images(catalog, scratch / f"images-{word}", QUICK_ROWS if quick else ROWS[network])
    config = NETWORKS[network]
    if quick:
        config = config.model_copy(update={"max_epochs": 2})
    forms, missing = _forms(catalog, dataset, config, STUDENT_WIDTHS[network], scratch / f"peers-{word}")
    return Findings(figures=list(_figures(forms, network)), notes=[*_notes(forms, network), *missing])


def images(catalog: Catalog, folder: Path, num_rows: int) -> ArtifactRef:
    """scikit-learn's digits as 28x28, each many times: shifted, dimmed and noisy. No image set comes with a package."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(images), num_rows)
    large = images.reshape(-1, 8, 8)[chosen].repeat(3, axis=1).repeat(3, axis=2) / 16
    canvas = np.zeros((num_rows, SIDE, SIDE), dtype=np.float32)
    for number, (down, right) in enumerate(rng.integers(0, 5, (num_rows, 2))):
        canvas[number, down : down + 24, right : right + 24] = large[number] * rng.uniform(0.6, 1)
    canvas += rng.normal(scale=0.1, size=canvas.shape)
    frame = pd.DataFrame(canvas.reshape(num_rows, -1), columns=[f"p{at}" for at in range(SIDE * SIDE)])
    folder.mkdir(parents=True)
    frame.assign(label=labels[chosen]).to_parquet(folder / "images.parquet")
    source = snapshot(catalog, f"file://{folder}", Origin()).ref
    return prepare(catalog, source, PreprocessConfig(target="label"), Origin()).ref


def _forms(
    catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, student_width: float, folder: Path
) -> tuple[dict[str, Form], list[str]]:
    """The float form, int8, half of the units with a fine-tune, a student, and what the peers make of the float form."""
    distil = Distil(width_fraction=student_width)
    origin, model = Origin(), train(catalog, dataset, config, Origin()).ref
    search = CompressConfig(search=SearchConfig(), measure=MeasureConfig(repeats=200))
    with Workshop() as workshop:
        bench = Bench(catalog=catalog, workshop=workshop, model=model, dataset=dataset, config=search)
        smaller = candidates.shrink(bench, PruneUnits(fraction=0.5), origin).ref
        gentle = config.model_copy(update={"optimizer": OptimizerConfig(name="adam", learning_rate=1e-4)})
        pruned = train(catalog, dataset, gentle, origin, init=smaller).ref
        student = train(catalog, dataset, _lesson(bench, distil, config), origin, teacher=model).ref
        whole = candidates.build(bench, Recipe(), model, None, origin)
        made = {
            FLOAT_FORM: whole,
            INT8: candidates.build(bench, Recipe(form=StaticInt8()), model, whole.ref, origin),
            PRUNED: candidates.build(bench, Recipe(network=PruneUnits(fraction=0.5)), pruned, None, origin),
            STUDENT: candidates.build(bench, Recipe(network=distil), student, None, origin),
        }
    forms = {name: _form(product) for name, product in made.items()}
    peers, missing = _of_peers(catalog, dataset, model, whole.ref, folder)
    return forms | peers, missing


def _lesson(bench: Bench, distil: Distil, config: TrainConfig) -> TrainConfig:
    """A student follows its teacher nearly alone, twice as long, at a rate that falls; decay, not dropout, which would take
    too much of its few units."""
    return config.model_copy(
        update={
            "model": candidates.student(bench, distil).model_copy(update={"dropout": 0.0}),
            "distill": DistillConfig(temperature=4, weight=0.9),
            "optimizer": OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.3),
            "schedule": ScheduleConfig(name="cosine"),
            "max_epochs": 2 * config.max_epochs,
        }
    )


def _form(product: Product) -> Form:
    built = candidates.outcome_of(product.manifest)
    drop = built.drops["accuracy"]
    return Form(
        accuracy=drop.value, size_bytes=built.size_bytes, parameters=built.parameters, macs=built.macs, bound=drop.bound
    )


def _of_peers(
    catalog: Catalog, dataset: ArtifactRef, model: ArtifactRef, float_form: ArtifactRef, folder: Path
) -> tuple[dict[str, Form], list[str]]:
    """What each peer makes of the float form, and a sentence for each that makes nothing."""
    catalog.fetch(float_form, folder)
    spec = RuntimeSpec.model_validate(json.loads((folder / FORM_FILE).read_text()))
    rows = Rows.fetch(catalog, dataset, model, folder / "rows", ["train", "validation"])
    samples, (features, targets) = {INPUT: rows.some("train", SAMPLES)}, rows.all("validation")
    forms, missing = {}, []
    for name in [name for name, peer in PEERS.items() if peer.kind != "transformer"]:
        made, problem = quantized_by(name, folder / spec.file, samples, folder)
        if made is None:
            missing.append(f"{name}: not measured, {problem}")
            continue
        answers = open_runtime(made, folder).run(features).argmax(axis=1)
        forms[name] = Form(accuracy=float((answers == targets).mean()), size_bytes=made.size_bytes(folder))
    return forms, missing


def _figures(forms: Mapping[str, Form], network: str) -> Iterator[Figure]:
    whole = forms[FLOAT_FORM]
    for name, form in forms.items():
        if name == FLOAT_FORM:
            continue
        limit = LOSS_LIMITS.get(name)
        yield _figure(f"accuracy of {network}", name, "accuracy", form.accuracy, whole.accuracy, "more", limit)
        size = 0.26 if name == STUDENT else None
        yield _figure(f"size of {network}", name, "bytes", form.size_bytes, whole.size_bytes, "less", size)
    for name, limit in PARAMETER_LIMITS.items():
        form = forms[name]
        yield _figure(f"parameters of {network}", name, "parameters", form.parameters, whole.parameters, "less", limit)
        yield _figure(f"multiplications of {network}", name, "a row", form.macs, whole.macs, "less", None)


def _figure(
    name: str, subject: str, unit: str, value: float | None, reference: float | None, better: Literal["more", "less"],
    target: float | None,
) -> Figure:  # fmt: skip
    assert value is not None
    assert reference is not None
    return Figure(
        name=name, subject=subject, against=FLOAT_FORM, unit=unit, better=better, values=[float(value)],
        reference=[float(reference)], target=target,
    )  # fmt: skip


def _notes(forms: Mapping[str, Form], network: str) -> list[str]:
    bounds = ", ".join(f"{name} {one.bound:.4f}" for name, one in forms.items() if name != FLOAT_FORM and one.bound)
    return [
        (
            f"{network}: images are scikit-learn's digits enlarged to 28x28, shifted, dimmed and with noise; copies of one"
            " image may fall into several splits, so the accuracies are of no use but against each other."
        ),
        f"{network}: float accuracy {forms[FLOAT_FORM].accuracy:.4f}; upper 95 % bounds of the drops: {bounds}.",
        (
            f"{network}: units-0.5 has half of its units (channels) removed and is fine-tuned; the student has"
            f" {STUDENT_WIDTHS[network]:g} of the width, and is taught."
        ),
    ]
