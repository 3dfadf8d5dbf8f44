"""What a rank has freed, it uses again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from modelyard.train import TrainConfig
from modelyard.train.allocator import allocator_variables
from modelyard.train.launch import _rank_environment

FAULTS = """
import resource
import numpy as np
for _ in range(2):
    np.ones(50_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(variables: dict[str, str]) -> int:
    """Page faults of a process that needs 400 MB, five times, and has had them before."""
    command = [sys.executable, "-c", FAULTS]
    said = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=True)
    return int(said.stdout)


@pytest.mark.skipif(not allocator_variables({}), reason="the C library is not glibc 2.35 or later")
def test_blocks_are_used_again():
    """Large blocks that were freed need no new pages; by default all of them would."""
    variables = allocator_variables({})
    assert variables.items() <= _rank_environment(TrainConfig()).items()
    assert faults(variables) < 100 < faults({})


@pytest.mark.parametrize("given", [{"MALLOC_ARENA_MAX": "1"}, {"LD_PRELOAD": "libjemalloc.so"}])
def test_who_chose_an_allocator_keeps_it(given: dict[str, str]):
    """What a user has set for it stays alone."""
    assert allocator_variables(given) == {}
