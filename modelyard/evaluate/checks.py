"""From evidence to a verdict: one check for each bound of the config."""

from __future__ import annotations

import math
from collections.abc import Iterator

from modelyard import gates
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.evidence import CANDIDATE, CHAMPION, FLOAT, Evidence
from modelyard.evaluate.robustness import UNDISTURBED, Scores


def judge(
    subject: str, evidence: Evidence, size_bytes: int, config: EvaluateConfig, latency_ms: float = math.nan
) -> gates.Verdict:
    """Every check that the config asks for. A bound whose number could not be computed refuses.

    Args:
        subject: what is judged, for sentences.
        size_bytes: of the judged form's file.
        latency_ms: median of one row, as measured when the form was made; NaN where nobody did.
    """
    return gates.Verdict(
        subject=subject,
        checks=[
            *_of_scores(evidence, config),
            *_against_champion(evidence, config),
            *_of_slices(evidence, config),
            *_of_disturbances(evidence, config),
            *_of_attacks(evidence, config),
            *_of_limits(evidence, size_bytes, latency_ms, config),
        ],
    )


def _of_scores(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    value, reference = evidence.candidate.value(config.metric), evidence.judged[FLOAT].value(config.metric)
    yield gates.floor("fraction of rows with finite outputs", evidence.candidate.finite_fraction, 1.0)
    yield gates.floor(config.metric, value, config.floor)
    yield gates.allowed_drop(config.metric, value, reference, config.allowed_drop_against_float, against=FLOAT)


def _against_champion(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    if evidence.champion_problem:
        sentence = f"not compared with the champion: {evidence.champion_problem}"
        yield gates.Check(name="comparison with the champion", value=None, limit=None, passed=False, sentence=sentence)
    if CHAMPION not in evidence.judged:
        return
    value, reference = evidence.candidate.value(config.metric), evidence.judged[CHAMPION].value(config.metric)
    yield gates.allowed_drop(config.metric, value, reference, config.allowed_drop_against_champion, against=CHAMPION)
    if config.probability_better is not None:
        likely = evidence.comparison.probability_better if evidence.comparison else math.nan
        yield gates.floor("probability of being better than the champion", likely, config.probability_better)


def _of_slices(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    decisive = [one for one in evidence.slices if one.is_decisive]
    if config.slice_floor is not None:
        worst = min(decisive, key=lambda one: _nan_first(one.score.value), default=None)
        name, value = (worst.name, worst.score.value) if worst else ("no slice has rows enough", math.nan)
        yield gates.floor(f"{config.metric} in the worst slice ({name})", value, config.slice_floor)
    if config.allowed_drop_in_slices is not None and CHAMPION in evidence.judged:
        drops = [(one.score.value, one.champion, one.name) for one in decisive if one.champion is not None]
        value, reference, name = min(
            drops,
            key=lambda drop: _nan_first(drop[0] - drop[1]),
            default=(math.nan, math.nan, "no slice has rows enough"),
        )
        label = f"{config.metric} in the slice that lost most ({name})"
        yield gates.allowed_drop(label, value, reference, config.allowed_drop_in_slices, against=CHAMPION)


def _of_disturbances(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    if config.allowed_drop_when_disturbed is not None:
        yield _worst(evidence.disturbed, f"{config.metric} when disturbed", config.allowed_drop_when_disturbed)


def _of_attacks(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    if config.allowed_drop_under_attack is not None:
        yield _worst(evidence.attacked, f"{config.metric} under attack", config.allowed_drop_under_attack)
    if config.allowed_drop_under_attack_against_champion is not None and CHAMPION in evidence.judged:
        pairs = [(scores.get(CANDIDATE, math.nan), scores.get(CHAMPION, math.nan), kind)
                 for kind, scores in evidence.attacked.items() if kind != UNDISTURBED]  # fmt: skip
        value, reference, kind = min(
            pairs, key=lambda pair: _nan_first(pair[0] - pair[1]), default=(math.nan, math.nan, "nothing was attacked")
        )
        drop, name = config.allowed_drop_under_attack_against_champion, f"{config.metric} under attack ({kind})"
        yield gates.allowed_drop(name, value, reference, drop, against=CHAMPION)


def _worst(found: Scores, name: str, drop: float) -> gates.Check:
    """The kind of trouble that costs the candidate most, against its score over the same rows left alone."""
    calm = found.get(UNDISTURBED, {}).get(CANDIDATE, math.nan)
    kinds = [(kind, scores[CANDIDATE]) for kind, scores in found.items() if kind != UNDISTURBED and CANDIDATE in scores]
    kind, value = min(kinds, key=lambda pair: _nan_first(pair[1]), default=("nothing was tried", math.nan))
    return gates.allowed_drop(f"{name} ({kind})", value, calm, drop, against="undisturbed rows")


def _of_limits(evidence: Evidence, size_bytes: int, latency_ms: float, config: EvaluateConfig) -> Iterator[gates.Check]:
    if config.max_calibration_error is not None:
        error = evidence.candidate.headline().get("calibration_error", math.nan)
        yield gates.ceiling("calibration error", error, config.max_calibration_error)
    if config.max_size_bytes is not None:
        yield gates.ceiling("size in bytes", size_bytes, config.max_size_bytes)
    if config.max_latency_ms is not None:
        yield gates.ceiling("milliseconds for one row", latency_ms, config.max_latency_ms)


def _nan_first(value: float) -> float:
    """For ordering: what could not be computed is the worst there is."""
    return -math.inf if math.isnan(value) else value
