"""At its defaults no guard ends below no guard: neither on what is old, nor on what is new."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from guards.defaults import DEFAULTS, LEFT_OUT, noise, outcome, plain, tasks
from riprap import guards
from riprap.guards import Guard

SEEDS = (0, 1, 2)
NAMES = list(tasks(0))


def test_every_guard_is_here() -> None:
    kinds = {
        name
        for name in guards.__all__
        if inspect.isclass(kind := getattr(guards, name)) and issubclass(kind, Guard)
    }
    assert kinds == {name for name in DEFAULTS if " " not in name} | LEFT_OUT


# Known misses. Of 150 steps each: what else the guard does on the ten tasks stays as it is found.
MISSES = {
    "DERpp": "learns a rule over a table more slowly: 0.86",
    "AdaptiveReplay": "learns a rule over a table more slowly: 0.83 for 0.90 at least",
    "AutoGuard": "learns a rule over a table more slowly: 0.83 for 0.90 at least",
    "MarginAnchor": "learns from tiny batches more slowly: 0.84 for 0.87 at least",
    "EMA": "sets weights back at intervals: learns 0.72 to 0.89 of four tasks",
    "Clip": "keeps 0.12 for 0.15 at least of a rule that a rule follows",
    "Rollback": "refuses a behavior that starts under its floor",
}


def _case(name: str) -> object:
    if name not in MISSES:
        return name
    return pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=MISSES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("guard", [_case(name) for name in DEFAULTS])
def test_a_guard_at_its_defaults_does_no_harm(guard: str) -> None:
    """On each of ten tasks within the noise of training without it, and not below it on average."""
    below = []
    differences = []
    for name in NAMES:
        without = np.array([plain(name, seed) for seed in SEEDS])
        found = np.array(outcome(DEFAULTS[guard], name, SEEDS[0]))
        differences.append(found - without[0])
        for part, what in enumerate(("old", "new")):
            least = without[0, part] - max(noise(without[:, part].tolist()), 0.1)
            if found[part] < least:
                below.append(f"{name}, {what}: {found[part]:.2f} < {least:.2f}")
    assert not below
    old, new = np.mean(differences, 0)
    assert old >= -0.02
    assert new >= -0.1
