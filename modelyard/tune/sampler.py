"""The next point of a space, by Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011).

Each point is asked of a study made anew from what is known, in the order of the trials' numbers, with a seed of its own:
so it follows from the history alone, whatever process asks and however often.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from modelyard.errors import MissingExtra
from modelyard.tune.config import Dimension, TuneConfig
from modelyard.tune.study import Ask, Told

if TYPE_CHECKING:
    import optuna

FEWEST_FOR_IMPORTANCE = 4
FEATHER = 1e-9  # of a step: how far floats of one grid may lie apart


class TpeSampler:
    """Points of one study.

    Args:
        whole: keys that take whole numbers only.
        lower_is_better: of the metric.

    Raises:
        MissingExtra: Optuna is not installed.
    """

    def __init__(self, config: TuneConfig, whole: Collection[str], *, lower_is_better: bool) -> None:
        require_optuna()
        self._config = config
        self._whole = set(whole)
        self._lower = lower_is_better

    def __call__(self, number: int, asked: Mapping[int, Ask], told: Mapping[int, Told]) -> dict[str, Any]:
        """Parameters of trial ``number``."""
        import optuna

        # Seeds far apart for neighbouring studies and trials; the first trial is the preset's and draws nothing.
        seed = (self._config.seed * 1_000_003 + number) % 2**32
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self._config.startup, multivariate=False, constant_liar=True
        )
        study = self._study(asked, told, sampler)
        drawn = study.ask(fixed_distributions=self._distributions()).params
        return {key: _meant(self._config.space[key], value) for key, value in drawn.items()}

    def importance(self, asked: Mapping[int, Ask], told: Mapping[int, Told]) -> dict[str, float]:
        """Share of each key in how the better trials differ, by PED-ANOVA (Watanabe et al., IJCAI 2023); nothing where
        too few are finished or all are equal."""
        import optuna

        finished = {number: one for number, one in told.items() if one.outcome == "finished"}
        if len(finished) < FEWEST_FOR_IMPORTANCE or len({one.value for one in finished.values()}) < 2:
            return {}
        study = self._study(asked, finished, None)
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
        return {key: float(value) for key, value in found.items()}

    def _study(
        self, asked: Mapping[int, Ask], told: Mapping[int, Told], sampler: optuna.samplers.BaseSampler | None
    ) -> optuna.Study:
        import optuna

        logging.getLogger("optuna").setLevel(logging.WARNING)  # it announces each study on standard error
        study = optuna.create_study(direction="minimize" if self._lower else "maximize", sampler=sampler)
        distributions = self._distributions()
        for number in sorted(asked):
            drawn = self._drawn(asked[number].parameters)
            known = _known_trial(drawn, distributions, told.get(number)) if drawn else None
            if known:
                study.add_trial(known)
        return study

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        made: dict[str, optuna.distributions.BaseDistribution] = {}
        for key, one in self._config.space.items():
            if one.choices is not None:
                made[key] = CategoricalDistribution(range(len(one.choices)))
            elif key in self._whole:
                low, high, step = int(one.low or 0), int(one.high or 0), int(one.step or 1)
                made[key] = IntDistribution(low, high - (high - low) % step, log=one.log, step=step)
            else:
                low, high, step = float(one.low or 0), float(one.high or 0), one.step
                if step is not None:  # Optuna warns of an end that no step reaches
                    high = low + int((high - low) / step + FEATHER) * float(step)
                made[key] = FloatDistribution(low, high, log=one.log, step=step)
        return made

    def _drawn(self, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters as Optuna would have drawn them; None where one is of another kind than the space."""
        drawn = {}
        for key, one in self._config.space.items():
            value = parameters[key]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value not in one.choices if one.choices is not None else not is_number:
                return None
            drawn[key] = value if one.choices is None else one.choices.index(value)
        return drawn


def require_optuna() -> None:
    """Say what is missing before anything is computed.

    Raises:
        MissingExtra: Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise MissingExtra("optuna", "tuning", "the tune flow")


def _meant(dimension: Dimension, drawn: Any) -> Any:
    return dimension.choices[drawn] if dimension.choices is not None else drawn


def _known_trial(
    drawn: dict[str, Any], distributions: dict[str, Any], told: Told | None
) -> optuna.trial.FrozenTrial | None:
    """A trial as Optuna knows it; None where it lies outside of the space, as the preset's own values may.

    One that failed counts as the worst: left out, it would be asked for again.
    """
    from optuna.trial import TrialState, create_trial

    state, value, steps = TrialState.RUNNING, None, {}
    if told:
        state = TrialState.COMPLETE if told.outcome == "finished" else TrialState.PRUNED
        value = told.value if told.outcome == "finished" else None
        steps = dict(enumerate(told.values, start=1)) if told.outcome == "pruned" else {}
    try:
        return create_trial(
            state=state, value=value, params=drawn, distributions=distributions, intermediate_values=steps
        )
    except ValueError:
        return None
