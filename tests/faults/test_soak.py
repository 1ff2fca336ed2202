"""Twenty rounds' worth of `make soak`: killed at random until both budgets are spent, then I1 to I4 are looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 20


@pytest.mark.integration
def test_killed_at_random_until_the_budget_is_spent_all_invariants_hold() -> None:
    """A kill a second in the mean, for as long as it takes: more than ten seconds everywhere.

    So the chance that nobody at all is killed is below e^-10. Who is killed is drawn as well: in so short a run it may
    be silos alone.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.soak", "--rounds", str(ROUNDS), "--every", "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["problems"] == []
    assert facts["paid"] == ROUNDS
    assert facts["stopped"].startswith("budget: ")
    assert sum(facts["kills"].values()) > 0
