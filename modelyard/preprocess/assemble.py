"""The data set of its partitions: their shards where they lie, one transform, one target, one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from modelyard.catalog import Attempt
from modelyard.datasets import (
    PARTITIONS_FILE,
    REPORT_FILE,
    SCHEMA_FILE,
    SPLITS,
    TARGET_FILE,
    TRANSFORM_FILE,
    Split,
)
from modelyard.errors import DataError
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.fitting import TransformFitter
from modelyard.preprocess.noise import suspects
from modelyard.preprocess.schema import Plan, schema_yaml
from modelyard.preprocess.statistics import Statistics, check_refused
from modelyard.preprocess.whole import Part
from modelyard.task_kinds import Target, task_kind
from modelyard.transform import TextTransform


def assemble(
    attempt: Attempt,
    config: PreprocessConfig,
    plan: Plan,
    parts: Sequence[Part],
    statistics: Statistics,
    rows_of: Callable[[Split], Iterator[pl.DataFrame]],
    told: Mapping[str, Any],
    text: TextTransform | None = None,
) -> None:
    """Make the attempt a data set, laid out as `modelyard.datasets` says.

    Args:
        statistics: of all parts.
        rows_of: reads the rows of a split once more, for what needs them.
        told: what else the report says.
        text: the transform of a column of texts, where that is the feature: nothing of it is fitted here.

    Raises:
        DataError: too many rows were refused, or a split cannot be used.
    """
    check_refused(statistics.num_read, statistics.reasons, config.max_rejected_fraction)
    _check_splits(config, statistics)
    _adopt(attempt, parts)
    attempt.add_bytes(SCHEMA_FILE, schema_yaml(config, plan))
    attempt.add_json(PARTITIONS_FILE, {"partitions": [_described(part) for part in parts]})
    splits = {split: statistics.rows[split] for split in SPLITS}
    attempt.facts.update(**statistics.counts, splits=splits, num_features=len(plan.features))
    found = sum(part.forms[0].reused for part in parts)
    attempt.measurements.update(partitions=len(parts), partitions_found=found)
    if config.task == "language_modelling":
        _write_tokens(attempt, config, plan, rows_of)
        more = {}
    elif text is not None:
        _check_labels(plan, statistics)
        attempt.add_json(TRANSFORM_FILE, text.model_dump(mode="json"))
        target = _target_of_texts(config, plan, statistics, text)
        attempt.add_json(TARGET_FILE, target.model_dump(mode="json"))
        more = {}
    else:
        more = _write_transform(attempt, config, plan, statistics, rows_of)
    attempt.add_json(REPORT_FILE, _report(plan, statistics) | dict(told) | more)


def _write_tokens(
    attempt: Attempt, config: PreprocessConfig, plan: Plan, rows_of: Callable[[Split], Iterator[pl.DataFrame]]
) -> None:
    from modelyard.preprocess.tokens import write_tokens  # tokenizers: only where texts are

    def texts(split: Split) -> Iterator[list[str]]:
        return (rows[plan.target.name].to_list() for rows in rows_of(split))

    attempt.facts["tokens"] = write_tokens(attempt, config.transform.tokens, plan.target.name, texts)


def _write_transform(
    attempt: Attempt,
    config: PreprocessConfig,
    plan: Plan,
    statistics: Statistics,
    rows_of: Callable[[Split], Iterator[pl.DataFrame]],
) -> dict[str, Any]:
    """Transform and target; what the report says of labels."""
    kind, target = task_kind(config.task), _target(config, plan, statistics)
    _check_labels(plan, statistics)
    train = partial(rows_of, "train")

    def encode(values: pl.Series) -> np.ndarray:
        return kind.encode(target, values.to_pandas())

    fitter = TransformFitter(config, plan, statistics.train)
    transform = fitter.fit(train, encode)
    if config.task == "retrieval":
        transform, items = fitter.split(transform)
        target = target.model_copy(update={"items": items, "weight": config.weight})
    attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))
    attempt.add_json(TARGET_FILE, target.model_dump(mode="json"))
    if not config.label.suspects:
        return {}
    num_rows, most = statistics.rows["train"], config.label.suspects
    return {"label_suspects": suspects(transform, train(), num_rows, target.column, encode, target.classes, most)}


def _adopt(attempt: Attempt, parts: Sequence[Part]) -> None:
    """Shards of all parts, numbered through in order of arrival; refused rows of every form."""
    numbers = dict.fromkeys((*SPLITS, "rejected"), 0)
    for at, part in enumerate(parts):
        for step, form in enumerate(part.forms):
            folders = (*SPLITS, "rejected") if form is part.latest else ("rejected",)
            names = [name for name in form.manifest.content.files if name.partition("/")[0] in folders]
            if names:
                attempt.input_uris[f"partition {at}.{step}"] = form.ref.uri
            for name in names:
                folder = name.partition("/")[0]
                entry, uri = form.manifest.content.files[name], form.manifest.file_uri(form.ref.uri, name)
                attempt.adopt(f"{folder}/{numbers[folder]:06d}.parquet", entry, uri)
                numbers[folder] += 1


def _described(part: Part) -> dict[str, Any]:
    return {
        "sources": [source.model_dump(mode="json") for source in part.partition.sources],
        "digest": part.latest.ref.digest,
        "facts": part.latest.manifest.content.facts,
    }


def _target(config: PreprocessConfig, plan: Plan, statistics: Statistics) -> Target:
    found = statistics.train.target
    scale = (float(found.mean[0]), float(found.deviation[0])) if found else (0.0, 1.0)
    return task_kind(config.task).fit_target(plan.target.name, set(statistics.labels["train"]), *scale)


def _target_of_texts(config: PreprocessConfig, plan: Plan, statistics: Statistics, text: TextTransform) -> Target:
    if config.task == "masked_language_modelling":
        return Target(task=config.task, column=plan.target.name, width=text.vocabulary)
    return _target(config, plan, statistics).model_copy(update={"similarity": config.similarity})


def _check_splits(config: PreprocessConfig, statistics: Statistics) -> None:
    for split in SPLITS:
        if not statistics.rows[split]:
            raise DataError(
                f"the {split} split is empty: {statistics.counts['kept']} rows are too few for a fraction of"
                f" {getattr(config.split, split):g}, or too few identities; add data or raise split.{split}"
            )


def _check_labels(plan: Plan, statistics: Statistics) -> None:
    """A class that training never sees could be neither scored nor predicted."""
    labels = statistics.labels
    for split in SPLITS:
        strangers = sorted(map(str, labels[split].keys() - labels["train"].keys()))
        if strangers:
            raise DataError(
                f"target column {plan.target.name!r}: the {split} split has classes that the training split"
                f" has not: {', '.join(strangers[:5])}; add rows of them, or list the wanted ones in target_values"
            )


def _report(plan: Plan, statistics: Statistics) -> dict[str, Any]:
    return {
        "rows": statistics.counts,
        "rejected": [
            {"column": column, "reason": reason, "rows": count}
            for (column, reason), count in sorted(statistics.reasons.items(), key=lambda item: (-item[1], item[0]))
        ],
        "splits": {
            split: {
                "rows": statistics.rows[split],
                "labels": {str(label): count for label, count in sorted(statistics.labels[split].items())},
            }
            for split in SPLITS
        },
        "label_functions": statistics.votes.state(),
        "profile": {"before": statistics.before.as_json(), "after": statistics.after.as_json()},
        "columns": {
            "features": plan.features,
            "target": plan.target.name,
            "identity": plan.identity,
            "ignored": plan.ignored,
        },
    }
