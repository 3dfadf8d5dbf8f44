"""Tuning: competing trainings over keys of the configuration, the best of which goes on.

    config.py    how to tune: the space, the bounds, who is ended early
    space.py     keys and values of the space, held against the configuration they are to change
    study.py     what to try next, and what came of it; pure
    sampler.py   the next point of the space, by Optuna
    pruning.py   the bar that a trial has to clear, and the judge that holds it to it
    trials.py    trials as artifacts: what makes a study go on where it was
    picture.py   a study as people look at it

Trainings are the train stage's, preprocessing is preprocess's: flow and tasks bring them together.
"""

from modelyard.tune.config import Dimension, TuneConfig
from modelyard.tune.study import Ask, Decision, Standing, Study, Told

__all__ = ["Ask", "Decision", "Dimension", "Standing", "Study", "Told", "TuneConfig"]
