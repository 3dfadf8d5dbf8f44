"""What compression costs and gains: a 784-128-10 perceptron and a convolutional network through the train stage, and a
sentence transformer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import compress_minilm
from benchmarks.figures import Figure, Findings
from benchmarks.installation import Installation
from commands.parts import STORE
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.compress import CompressConfig, Distil, MeasureConfig, PruneUnits, SearchConfig, StaticInt8, candidates
from modelyard.compress.candidates import Bench
from modelyard.compress.search import Built, Recipe
from modelyard.compress.workshop import Workshop
from modelyard.model_package import FLOAT_FORM
from modelyard.models import CnnConfig, MlpConfig
from modelyard.preprocess import PreprocessConfig, snapshot
from modelyard.preprocess import preprocess as prepare
from modelyard.storage import Store
from modelyard.train import DistillConfig, OptimizerConfig, TrainConfig, train

SIDE, ROWS, QUICK_ROWS = 28, 24_000, 2_000
PERCEPTRON, CONVOLUTIONAL = "784-128-10", "cnn 16-32-128"
INT8, PRUNED, STUDENT = "int8", "units-0.5", "student"
# What leaves a quarter of the weights: they grow with the width of one hidden layer, and with its square of several.
STUDENT_WIDTHS = {PERCEPTRON: 0.25, CONVOLUTIONAL: 0.5}
# Largest loss of accuracy, as the ratio of two accuracies near 1.
LOSS_LIMITS = {INT8: 0.998, PRUNED: 0.995, STUDENT: 0.99}
PARAMETER_LIMITS = {PRUNED: 0.51, STUDENT: 0.26}


def run(installation: Installation, quick: bool) -> Findings:
    """Measure. Drops are on the validation split, between forms of the networks that were trained in this run."""
    catalog = Catalog(Store(installation.up([STORE])))
    dataset = _images(catalog, installation.scratch / "images", QUICK_ROWS if quick else ROWS)
    config = TrainConfig(
        model=MlpConfig(hidden_sizes=(128,), dropout=0.2),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
        batch_size=128,
        max_epochs=2 if quick else 10,
        ranks=1,
    )
    found = _forms(catalog, dataset, config, STUDENT_WIDTHS[PERCEPTRON])
    figures = list(_figures(found, PERCEPTRON))
    convolutional = config.model_copy(
        update={"model": CnnConfig(kind="cnn", image=(SIDE, SIDE)), "max_epochs": max(2, config.max_epochs // 2)}
    )
    seen = _forms(catalog, dataset, convolutional, STUDENT_WIDTHS[CONVOLUTIONAL])
    figures += _figures(seen, CONVOLUTIONAL)
    transformer = compress_minilm.run(installation.scratch, quick)
    notes = [*_notes(found, PERCEPTRON), *_notes(seen, CONVOLUTIONAL)[1:]]
    return Findings(figures=[*figures, *transformer.figures], notes=[*notes, *transformer.notes])


def _images(catalog: Catalog, folder: Path, num_rows: int) -> ArtifactRef:
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


def _forms(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, student_width: float) -> dict[str, Built]:
    """The float form, int8, half of the units with a fine-tune, and a student of a fraction of the width."""
    distil = Distil(width_fraction=student_width)
    origin, model = Origin(), train(catalog, dataset, config, Origin()).ref
    search = CompressConfig(search=SearchConfig(), measure=MeasureConfig(repeats=200))
    with Workshop() as workshop:
        bench = Bench(catalog=catalog, workshop=workshop, model=model, dataset=dataset, config=search)
        smaller = candidates.shrink(bench, PruneUnits(fraction=0.5), origin).ref
        gentle = config.model_copy(update={"optimizer": OptimizerConfig(name="adam", learning_rate=1e-4)})
        pruned = train(catalog, dataset, gentle, origin, init=smaller).ref
        narrow = candidates.student(bench, distil)
        lesson = config.model_copy(
            update={"model": narrow, "distill": DistillConfig(), "max_epochs": 2 * config.max_epochs}
        )
        student = train(catalog, dataset, lesson, origin, teacher=model).ref
        whole = candidates.build(bench, Recipe(), model, None, origin)
        made = {
            FLOAT_FORM: whole,
            INT8: candidates.build(bench, Recipe(form=StaticInt8()), model, whole.ref, origin),
            PRUNED: candidates.build(bench, Recipe(network=PruneUnits(fraction=0.5)), pruned, None, origin),
            STUDENT: candidates.build(bench, Recipe(network=distil), student, None, origin),
        }
    return {name: candidates.outcome_of(product.manifest) for name, product in made.items()}


def _figures(found: dict[str, Built], network: str) -> Iterator[Figure]:
    whole = found[FLOAT_FORM]
    for name, limit in LOSS_LIMITS.items():
        accuracy = [found[name].drops["accuracy"].value], [whole.drops["accuracy"].value]
        yield _figure(f"accuracy of {network}", name, "accuracy", accuracy, "more", limit)
        size = [float(found[name].size_bytes)], [float(whole.size_bytes)]
        yield _figure(f"size of {network}", name, "bytes", size, "less", 0.26 if name == STUDENT else None)
    for name, limit in PARAMETER_LIMITS.items():
        counts = [float(found[name].parameters)], [float(whole.parameters)]
        yield _figure(f"parameters of {network}", name, "parameters", counts, "less", limit)
        work = [float(found[name].macs)], [float(whole.macs)]
        yield _figure(f"multiplications of {network}", name, "a row", work, "less", None)


def _figure(
    name: str, subject: str, unit: str, values: tuple[list[float], list[float]], better: str, target: float | None
) -> Figure:
    return Figure(
        name=name,
        subject=subject,
        against=FLOAT_FORM,
        unit=unit,
        better="more" if better == "more" else "less",
        values=values[0],
        reference=values[1],
        target=target,
    )


def _notes(found: dict[str, Built], network: str) -> list[str]:
    bounds = ", ".join(f"{name} {one.drops['accuracy'].bound:.4f}" for name, one in found.items() if name != FLOAT_FORM)
    return [
        (
            "Images: scikit-learn's digits enlarged to 28x28, shifted, dimmed and with noise; copies of one image may"
            " fall into several splits, so the accuracies are of no use but against each other."
        ),
        f"{network}: float accuracy {found[FLOAT_FORM].drops['accuracy'].value:.4f}; upper 95 % bounds of the drops: {bounds}.",
        (
            f"{network}: units-0.5 has half of its units (channels) removed and is fine-tuned; the student has"
            f" {STUDENT_WIDTHS[network]:g} of the width, and is taught."
        ),
    ]
