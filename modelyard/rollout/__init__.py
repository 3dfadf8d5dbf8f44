"""The rollout stage: a judged model becomes a registered version, and the endpoint takes it over.

config.py     how to roll out
stage.py      `rollout` and `rollback`: register, propose a revision, watch the endpoint reach it
endpoint.py   the endpoint as seen from outside: notify, status
"""

from modelyard.rollout.config import RolloutConfig
from modelyard.rollout.stage import Release, rollback, rollout

__all__ = ["Release", "RolloutConfig", "rollback", "rollout"]
