"""A trained language model under judgement: how well it foretells the texts of the test split, held against bounds.

It is judged as it was trained, by torch: there is no smaller form of it. Its answers are counted sequence by sequence, so
intervals are those of drawing sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modelyard import gates
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.datasets import TARGET_FILE
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate.card import model_card
from modelyard.evaluate.config import LANGUAGE_METRICS, EvaluateConfig
from modelyard.evaluate.files import CARD_FILE, METRICS_FILE, REPORT_FILE, VERDICT_FILE
from modelyard.evaluate.grouped import GroupedSums, SumStatistic, resample
from modelyard.evaluate.intervals import Comparison, Interval, comparison, percentiles
from modelyard.evaluate.report import report
from modelyard.metrics import LARGEST_EXPONENT
from modelyard.model_package import refuse_foreign_files
from modelyard.models.config import MODEL_FILE, ModelSpec
from modelyard.models.weights import StoredWeights, fetch_weights
from modelyard.nearest import nearest
from modelyard.task_kinds import Target
from modelyard.token_data import Sequences, TokenData

LIBRARIES = ("numpy", "scipy", "torch")
CANDIDATE, CHAMPION = "candidate", "champion"
FORM = "trained"
SCORES_AT_A_TIME = 2**24  # raw scores of tokens in memory: 64 MB

# Of sums (b, 3): nats, tokens, bytes.
STATISTICS: Mapping[str, SumStatistic] = {
    "bits_per_byte": lambda sums: sums[:, 0] / math.log(2) / np.maximum(sums[:, 2], 1),
    "perplexity": lambda sums: np.exp(np.minimum(sums[:, 0] / np.maximum(sums[:, 1], 1), LARGEST_EXPONENT)),
    "loss": lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1),
}


# Of hidden tokens nobody asks how many bytes they have: a word's parts are hidden one by one.
MASKED_STATISTICS = {name: STATISTICS[name] for name in ("perplexity", "loss")}


def evaluate_language(
    catalog: Catalog,
    model_ref: ArtifactRef,
    dataset_ref: ArtifactRef,
    champion_ref: ArtifactRef | None,
    config: EvaluateConfig,
    origin: Origin,
) -> Product:
    """Judge a trained language model on the test split.

    Args:
        model_ref: the candidate, a ``model`` artifact.
        champion_ref: another one with the same tokenizer, to be held against.

    Returns:
        A ``verdict`` artifact with ``verdict.json``, ``metrics.json`` (role -> bits_per_byte, perplexity, loss in nats a token, and
        their ``intervals``), ``report.html`` and ``model-card.md``.

    Raises:
        ConfigError: a metric of another task.
        DataError: a model that is none of language, has another tokenizer than the data set, or holds a file that is not
            plain data.
    """
    inputs = {CANDIDATE: model_ref, "dataset": dataset_ref} | ({CHAMPION: champion_ref} if champion_ref else {})
    work = Work(
        kind="verdict",
        config=config.model_dump(mode="json"),
        inputs=inputs,
        code_version=code_version("modelyard.evaluate", LIBRARIES),
    )
    return catalog.produce(work, partial(_build, catalog, work, config), origin)


def _build(catalog: Catalog, work: Work, config: EvaluateConfig, attempt: Attempt) -> None:
    task = Target.model_validate_json(catalog.read(work.inputs["dataset"], TARGET_FILE)).task
    statistics = MASKED_STATISTICS if task == "masked_language_modelling" else STATISTICS
    known = [name for name in LANGUAGE_METRICS if name in statistics]
    if config.metric not in known:
        raise ConfigError("evaluate.metric", f"{task} has no {config.metric}; it has {', '.join(known)}")
    if config.slices:
        raise ConfigError("evaluate.slices", "language models are judged by tokens, not by rows: no slices")
    roles = {role: work.inputs[role] for role in (CANDIDATE, CHAMPION) if role in work.inputs}
    for ref in roles.values():
        refuse_foreign_files(catalog.manifest(ref).content.files)
    if statistics is MASKED_STATISTICS:
        from modelyard.evaluate.masked_language import read_masked

        read = read_masked(catalog, work.inputs["dataset"], roles, config.seed, attempt.scratch)
    else:
        data = TokenData.fetch(catalog, work.inputs["dataset"], attempt.scratch / "dataset", ["test"])
        read = {role: _read(catalog, ref, role, data, attempt.scratch / role) for role, ref in roles.items()}
    found = _intervals(read, statistics, config)
    compared = _compared(read, config)
    size = StoredWeights(attempt.scratch / CANDIDATE).num_bytes
    verdict = gates.Verdict(subject=str(work.inputs[CANDIDATE]), checks=_checks(read, found, compared, size, config))
    metrics = {role: _metrics(one, found[role]) for role, one in read.items()}
    document = _document(verdict, found, compared, size, work, config)
    attempt.add_json(VERDICT_FILE, document)
    attempt.add_json(METRICS_FILE, metrics)
    attempt.add_bytes(REPORT_FILE, report(document, metrics).encode())
    attempt.add_bytes(CARD_FILE, model_card(document, metrics, None, _about(catalog, work), config).encode())
    attempt.facts.update(
        subject=verdict.subject,
        passed=document["passed"] or bool(document["override"]),
        reasons=verdict.reasons,
        checks=verdict.table(),
        form=FORM,
        metrics={role: {name: one[name] for name in statistics if name in one} for role, one in metrics.items()},
        interval=document["scores"].get(CANDIDATE),
        override=document["override"],
    )


def _about(catalog: Catalog, work: Work) -> list[str]:
    """What the candidate is, for its card."""
    target = Target.model_validate_json(catalog.read(work.inputs[CANDIDATE], TARGET_FILE))
    spec = ModelSpec.model_validate_json(catalog.read(work.inputs[CANDIDATE], MODEL_FILE))
    tokens = len(target.token_bytes) or target.width
    return [f"foretells tokens of `{target.column}` ({target.task}), {tokens:,} of them", f"is a {spec.model.kind}"]


class Read:
    """What one model made of every sequence, or text: nats, tokens and bytes in `sums`, nats a token in `losses` (n,)."""

    def __init__(self) -> None:
        self.sums = GroupedSums(3)
        self.losses: list[np.ndarray] = []
        self.num_finite = self.num_rows = 0

    def add(self, sums: np.ndarray) -> None:
        """Take in nats, tokens and bytes of the next sequences, (n, 3)."""
        self.sums.add(sums)
        self.losses.append(sums[:, 0] / np.maximum(sums[:, 1], 1))
        self.num_finite += int(np.isfinite(sums[:, 0]).sum())
        self.num_rows += len(sums)


def _read(catalog: Catalog, ref: ArtifactRef, role: str, data: TokenData, folder: Path) -> Read:
    from modelyard.models.build import load_model  # torch: seconds

    target = Target.model_validate_json(catalog.read(ref, TARGET_FILE))
    if target.question != data.target.question:
        raise DataError(
            f"the {role} {ref} cannot be judged on this data set: "
            + ("it has another tokenizer" if target.task == data.target.task else f"it is for {target.task}")
        )
    fetch_weights(catalog, ref, folder, [MODEL_FILE])
    return _counted(load_model(folder), data.sequences("test"), np.asarray(target.token_bytes, dtype=np.float64))


def _counted(network: Any, sequences: Sequences, token_bytes: np.ndarray) -> Read:
    import torch
    from torch.nn import functional

    found = Read()
    length = len(sequences.read(np.arange(1))[0][0])
    some = max(1, SCORES_AT_A_TIME // (length * len(token_bytes)))
    for start in range(0, len(sequences), some):
        tokens, following = sequences.read(np.arange(start, min(start + some, len(sequences))))
        with torch.inference_mode():
            scores = network(torch.from_numpy(tokens)).float()
            lost = functional.cross_entropy(
                scores.flatten(0, 1), torch.from_numpy(following).flatten(), reduction="none"
            )
        nats, here = lost.view(following.shape).double().numpy(), following >= 0
        sums = np.column_stack(
            [
                np.where(here, nats, 0.0).sum(axis=1),
                here.sum(axis=1),
                np.where(here, token_bytes[following], 0.0).sum(axis=1),
            ]
        )
        found.add(sums)
    return found


def _drawn(read: Mapping[str, Read], config: EvaluateConfig) -> dict[str, np.ndarray]:
    """Sums over the same resamples of sequences for each role, (b, 3)."""
    parts = resample([one.sums for one in read.values()], np.random.default_rng(config.seed), config.resamples)
    return dict(zip(read, parts, strict=True))


def _intervals(
    read: Mapping[str, Read], statistics: Mapping[str, SumStatistic], config: EvaluateConfig
) -> dict[str, dict[str, Interval]]:
    drawn = _drawn(read, config)
    return {
        role: {
            name: percentiles(float(statistic(one.sums.total[None])[0]), statistic(drawn[role]), config.confidence)
            for name, statistic in statistics.items()
        }
        for role, one in read.items()
    }


def _compared(read: Mapping[str, Read], config: EvaluateConfig) -> Comparison | None:
    """The candidate against the champion, the difference turned so that more is better."""
    if CHAMPION not in read:
        return None
    statistic, drawn = STATISTICS[config.metric], _drawn(read, config)
    own, other = (float(statistic(read[role].sums.total[None])[0]) for role in (CANDIDATE, CHAMPION))
    one, two = (np.concatenate(read[role].losses) for role in (CANDIDATE, CHAMPION))
    better = statistic(drawn[CHAMPION]) - statistic(drawn[CANDIDATE])
    return comparison(other - own, better, int((one < two).sum()), int((two < one).sum()), config.confidence)


def _checks(
    read: Mapping[str, Read],
    found: Mapping[str, Mapping[str, Interval]],
    compared: Comparison | None,
    size_bytes: int,
    config: EvaluateConfig,
) -> list[gates.Check]:
    value, one = found[CANDIDATE][config.metric].value, read[CANDIDATE]
    assert config.ceiling is not None, "the config holds it"
    checks = [
        gates.floor("fraction of sequences with finite losses", one.num_finite / max(one.num_rows, 1), 1.0),
        gates.ceiling(config.metric, value, config.ceiling),
        *_of_named_scores(found[CANDIDATE], config),
    ]
    if CHAMPION in found:
        allowed = found[CHAMPION][config.metric].value + config.allowed_drop_against_champion
        checks.append(gates.ceiling(f"{config.metric} against champion", value, allowed))
        if config.probability_better is not None and compared:
            likely = compared.probability_better
            checks.append(
                gates.floor("probability of being better than the champion", likely, config.probability_better)
            )
    if config.max_size_bytes is not None:
        checks.append(gates.ceiling("size in bytes", size_bytes, config.max_size_bytes))
    return [*checks, *_never_computed(config)]


def _of_named_scores(found: Mapping[str, Interval], config: EvaluateConfig) -> list[gates.Check]:
    if config.floors:
        raise ConfigError("evaluate.floors", f"of {', '.join(found)} less is better: ceilings take them")
    for name in config.ceilings:
        if name not in found:
            raise ConfigError("evaluate.ceilings", nearest(name, list(found)))
    return [gates.ceiling(name, found[name].value, limit) for name, limit in config.ceilings.items()]


def _never_computed(config: EvaluateConfig) -> list[gates.Check]:
    """Bounds on what nobody measures of a language model refuse, as any bound without a number does."""
    limits = {
        "calibration error": config.max_calibration_error,
        "calibration error above the champion's": config.allowed_calibration_rise_against_champion,
        "milliseconds for one row": config.max_latency_ms,
        "milliseconds for one row as a multiple of the champion's": config.max_latency_ratio_to_champion,
        "size as a multiple of the champion's": config.max_size_ratio_to_champion,
        f"{config.metric} when disturbed": config.allowed_drop_when_disturbed,
        f"{config.metric} when disturbed against the champion": config.allowed_drop_when_disturbed_against_champion,
        f"{config.metric} under attack": config.allowed_drop_under_attack,
        f"{config.metric} under attack against the champion": config.allowed_drop_under_attack_against_champion,
    }
    return [gates.ceiling(name, math.nan, limit) for name, limit in limits.items() if limit is not None]


def _metrics(one: Read, found: Mapping[str, Interval]) -> dict[str, Any]:
    known = {name: interval for name, interval in found.items() if interval.is_finite}
    values = {name: interval.value for name, interval in known.items()}
    return {**values, "rows": one.num_rows, "intervals": {name: {"low": at.low, "high": at.high} for name, at in known.items()}}  # fmt: skip


def _document(
    verdict: gates.Verdict,
    found: Mapping[str, Mapping[str, Interval]],
    compared: Comparison | None,
    size_bytes: int,
    work: Work,
    config: EvaluateConfig,
) -> dict[str, Any]:
    return {
        **verdict.model_dump(mode="json"),
        "passed": verdict.passed,
        "override": {"by": config.override_by, "reason": config.override_reason} if config.override_by else None,
        "reasons": verdict.reasons,
        "metric": config.metric,
        "form": FORM,
        "scores": {
            role: one[config.metric].model_dump() for role, one in found.items() if one[config.metric].is_finite
        },
        "comparison": compared.model_dump() if compared and compared.difference.is_finite else None,
        "slices": [],
        "disturbed": {},
        "attacked": {},
        "attack_strength": 0.0,
        "sizes": {CANDIDATE: size_bytes},
        "notes": ["judged as it was trained: language models have no smaller form, and are not served"],
        "inputs": {role: ref.digest for role, ref in work.inputs.items()},
    }
