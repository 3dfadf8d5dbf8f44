"""From evidence to a verdict: one check for each bound of the config."""

from __future__ import annotations

import math
from collections.abc import Iterator

from modelyard import gates
from modelyard.errors import ConfigError
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.evidence import CANDIDATE, CHAMPION, FLOAT, Cost, Evidence
from modelyard.evaluate.robustness import UNDISTURBED, Scores
from modelyard.nearest import nearest


def judge(subject: str, evidence: Evidence, config: EvaluateConfig) -> gates.Verdict:
    """Every check that the config asks for. A bound whose number could not be computed refuses.

    Args:
        subject: what is judged, for sentences.

    Raises:
        ConfigError: a bound on a score that the task lacks; lists those it has.
    """
    return gates.Verdict(
        subject=subject,
        checks=[
            *_of_scores(evidence, config),
            *_of_named_scores(evidence, config),
            *_against_champion(evidence, config),
            *_of_slices(evidence, config),
            *_of_disturbances(evidence, config),
            *_of_attacks(evidence, config),
            *_of_limits(evidence, config),
        ],
    )


def _of_scores(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    value, reference = evidence.candidate.value(config.metric), evidence.judged[FLOAT].value(config.metric)
    yield gates.floor("fraction of rows with finite outputs", evidence.candidate.finite_fraction, 1.0)
    yield gates.floor(config.metric, value, config.floor)
    yield gates.allowed_drop(config.metric, value, reference, config.allowed_drop_against_float, against=FLOAT)


def _of_named_scores(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    found, known = evidence.candidate.headline(), evidence.candidate.score_names
    for field, bounds, rule in (("floors", config.floors, gates.floor), ("ceilings", config.ceilings, gates.ceiling)):
        for name, limit in bounds.items():
            if name not in known:
                raise ConfigError(f"evaluate.{field}", nearest(name, known))
            yield rule(name, found.get(name, math.nan), limit)


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
    drop = config.allowed_drop_when_disturbed_against_champion
    if drop is not None and CHAMPION in evidence.judged:
        yield _lowest(evidence.disturbed, f"{config.metric} when disturbed", drop, "nothing was disturbed")


def _of_attacks(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    if config.allowed_drop_under_attack is not None:
        yield _worst(evidence.attacked, f"{config.metric} under attack", config.allowed_drop_under_attack)
    drop = config.allowed_drop_under_attack_against_champion
    if drop is not None and CHAMPION in evidence.judged:
        yield _lowest(evidence.attacked, f"{config.metric} under attack", drop, "nothing was attacked")


def _lowest(found: Scores, name: str, drop: float, nothing: str) -> gates.Check:
    """The kind of trouble under which the candidate lies furthest below the champion."""
    pairs = [
        (scores.get(CANDIDATE, math.nan), scores.get(CHAMPION, math.nan), kind)
        for kind, scores in found.items()
        if kind != UNDISTURBED
    ]
    value, reference, kind = min(
        pairs, key=lambda pair: _nan_first(pair[0] - pair[1]), default=(math.nan, math.nan, nothing)
    )
    return gates.allowed_drop(f"{name} ({kind})", value, reference, drop, against=CHAMPION)


def _worst(found: Scores, name: str, drop: float) -> gates.Check:
    """The kind of trouble that costs the candidate most, against its score over the same rows left alone."""
    calm = found.get(UNDISTURBED, {}).get(CANDIDATE, math.nan)
    kinds = [(kind, scores[CANDIDATE]) for kind, scores in found.items() if kind != UNDISTURBED and CANDIDATE in scores]
    kind, value = min(kinds, key=lambda pair: _nan_first(pair[1]), default=("nothing was tried", math.nan))
    return gates.allowed_drop(f"{name} ({kind})", value, calm, drop, against="undisturbed rows")


def _of_limits(evidence: Evidence, config: EvaluateConfig) -> Iterator[gates.Check]:
    own, other = evidence.costs.get(CANDIDATE, Cost()), evidence.costs.get(CHAMPION, Cost())
    error = evidence.candidate.headline().get("calibration_error", math.nan)
    if config.max_calibration_error is not None:
        yield gates.ceiling("calibration error", error, config.max_calibration_error)
    if config.max_size_bytes is not None:
        yield gates.ceiling("size in bytes", own.size_bytes, config.max_size_bytes)
    if config.max_latency_ms is not None:
        yield gates.ceiling("milliseconds for one row", own.latency_ms, config.max_latency_ms)
    if CHAMPION not in evidence.judged:
        return
    if (rise := config.allowed_calibration_rise_against_champion) is not None:
        reference = evidence.judged[CHAMPION].headline().get("calibration_error", math.nan)
        yield gates.ceiling("calibration error above the champion's", error - reference, rise)
    if (limit := config.max_size_ratio_to_champion) is not None:
        yield gates.ceiling("size as a multiple of the champion's", _ratio(own.size_bytes, other.size_bytes), limit)
    if (limit := config.max_latency_ratio_to_champion) is not None:
        ratio = _ratio(own.latency_ms, other.latency_ms)
        yield gates.ceiling("milliseconds for one row as a multiple of the champion's", ratio, limit)


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else math.nan


def _nan_first(value: float) -> float:
    """For ordering: what could not be computed is the worst there is."""
    return -math.inf if math.isnan(value) else value
