"""The rollout stage: a judged model becomes a registered version, and the endpoint takes it over.

config.py     how to roll out
stage.py      `rollout` and `rollback`: register, propose a revision, watch the endpoint carry it out
watch.py      a rollout under way: how it stands, how it ended
approval.py   a person's yes or no before promotion
agreement.py  do aliases, revisions, endpoint and manifests say the same
aliases.py    the registry follows the ledger
regions.py    the same elsewhere: copy, verify, roll out, go back
timeline.py   a picture of a rollout
endpoint.py   the endpoint as seen from outside: notify, status, taking over
"""

from modelyard.rollout.approval import answer
from modelyard.rollout.config import RolloutConfig
from modelyard.rollout.regions import is_begun_in, rollback_in, rollout_in
from modelyard.rollout.stage import Release, rollback, rollout
from modelyard.rollout.watch import Look

__all__ = [
    "Look",
    "Release",
    "RolloutConfig",
    "answer",
    "is_begun_in",
    "rollback",
    "rollback_in",
    "rollout",
    "rollout_in",
]
