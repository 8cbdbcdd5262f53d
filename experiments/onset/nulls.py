"""Synthetic runs in which little or nothing happens to a behavior: margins that wander.

No training decides these paths, so an alert on a path that never breaks is false. A path that goes
under its floor is a break all the same: `Trace.break_step` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from experiments.onset.trace import BehaviorTrace, Half, Trace

STEPS = 1000
N_PROBES = (10, 24, 50, 200)
CLUSTER = 10  # probes that move together in `clusters`
CATEGORIES = 4  # of probes, in the other processes
FLOOR = 0.9

Rng = np.random.Generator
Process = Callable[[Rng, np.ndarray], np.ndarray]  # start margins -> margins at steps 0 to STEPS
TIME = np.arange(STEPS + 1)[:, None]


def _passing(rng: Rng, n: int) -> np.ndarray:
    return np.abs(rng.normal(3, 1.5, n)) + 1e-3


def _far(rng: Rng, n: int) -> np.ndarray:
    return rng.uniform(2, 4, n)


def _skewed(rng: Rng, n: int) -> np.ndarray:
    return rng.lognormal(0.5, 1.2, n)


def _failing_some(rng: Rng, n: int) -> np.ndarray:
    return _with_failing(rng, n, int(0.08 * n))


def _at_floor(rng: Rng, n: int) -> np.ndarray:
    """Return margins of which one more failing probe is a break."""
    return _with_failing(rng, n, int(np.floor((1 - FLOOR) * n + 1e-9)))


def _with_failing(rng: Rng, n: int, failing: int) -> np.ndarray:
    margins = _passing(rng, n)
    margins[:failing] = -rng.uniform(0.05, 1, failing)
    return rng.permutation(margins)


STARTS: dict[str, Callable[[Rng, int], np.ndarray]] = {
    "passing": _passing,
    "far": _far,
    "skewed": _skewed,
    "failing_some": _failing_some,
    "at_floor": _at_floor,
}


def _walk(rng: Rng, paths: int, spread: float) -> np.ndarray:
    """Return walks from 0, shape (STEPS + 1, paths); `spread` is their deviation at the end."""
    steps = rng.normal(scale=spread / STEPS**0.5, size=(STEPS, paths))
    return np.concatenate([np.zeros((1, paths)), steps.cumsum(0)])


def _noise(rng: Rng, start: np.ndarray, spread: float = 0.05) -> np.ndarray:
    """Return noise of each evaluation, 0 at the first, shape (STEPS + 1, n)."""
    return spread * rng.normal(size=(STEPS + 1, len(start))) * (TIME > 0)


def _still(rng: Rng, start: np.ndarray) -> np.ndarray:
    return start + _noise(rng, start, 0.1)


def _common_walk(spread: float) -> Process:
    """Scale all margins by one walk."""
    return lambda rng, start: start * (1 + _walk(rng, 1, spread)) + _noise(rng, start)


def _common_shift(spread: float) -> Process:
    """Move all margins by one walk, in units of their mean."""
    return lambda rng, start: start + start.mean() * _walk(rng, 1, spread) + _noise(rng, start)


def _walk_each(spread: float) -> Process:
    """Move each margin by a walk of its own, in units of the mean."""
    return lambda rng, start: start + start.mean() * _walk(rng, len(start), spread)


def _clusters(rng: Rng, start: np.ndarray) -> np.ndarray:
    cluster = np.arange(len(start)) // CLUSTER
    return start + start.mean() * _walk(rng, cluster[-1] + 1, 0.3)[:, cluster]


def _heavy_tails(rng: Rng, start: np.ndarray) -> np.ndarray:
    tails = rng.standard_cauchy(size=(STEPS + 1, len(start)))
    return start + 0.1 * tails * (TIME > 0)


def _fixed_shift(rng: Rng, start: np.ndarray) -> np.ndarray:
    """Lower the mean by 5 % at once, each probe by 8 % of it more or less; then stay."""
    shift = start.mean() * (0.05 + 0.08 * rng.choice([-1, 1], len(start)))
    return start - shift * (TIME > 0)


def _one_sided(rng: Rng, start: np.ndarray) -> np.ndarray:
    """Lower most probes by 12 % of the mean and raise a fifth by 48 %: the mean stays."""
    shift = np.where(rng.random(len(start)) < 0.2, 0.48, -0.12) * start.mean()
    return start + shift * np.minimum(TIME / 200, 1)


def _dip(rng: Rng, start: np.ndarray) -> np.ndarray:
    """Lose a quarter around step 120, and recover."""
    return start * (1 - 0.25 * np.exp(-(((TIME - 120) / 40) ** 2))) + _noise(rng, start)


def _warmup_dip(rng: Rng, start: np.ndarray) -> np.ndarray:
    """Lose three tenths by step 10, and recover by step 100."""
    return start * (1 - 0.3 * TIME / 10 * np.exp(1 - TIME / 10)) + _noise(rng, start)


def _plateau(decline: float) -> Process:
    """Lose a share of each margin in 200 steps, and stay there."""
    return lambda rng, start: start * (1 - decline * np.minimum(TIME / 200, 1))


PROCESSES: dict[str, Process] = {
    "still": _still,
    "common_walk_10": _common_walk(0.10),
    "common_walk_25": _common_walk(0.25),
    "common_shift_25": _common_shift(0.25),
    "walk_each": _walk_each(0.3),
    "walk_each_wide": _walk_each(1.0),
    "clusters": _clusters,
    "heavy_tails": _heavy_tails,
    "fixed_shift": _fixed_shift,
    "one_sided": _one_sided,
    "dip": _dip,
    "warmup_dip": _warmup_dip,
    "plateau_6": _plateau(0.06),
    "plateau_15": _plateau(0.15),
    "plateau_30": _plateau(0.30),
}


def null_traces(seeds: Iterable[int], half: Half = "exploratory") -> Iterator[Trace]:
    """Make the synthetic runs of each seed, one for each process and number of probes.

    The start margins change with the seed: five consecutive seeds have every process and number
    with every kind of start. Nothing is known of gradients and losses: they are NaN.

    Args:
        seeds: the same seed gives the same runs.
        half: what the runs are used for; rules are confirmed on seeds they were not chosen on.
    """
    kinds = list(STARTS)
    for seed in seeds:
        for place, process in enumerate(PROCESSES):
            for which, n in enumerate(N_PROBES):
                start = kinds[(seed + place + which) % len(kinds)]
                yield null_trace(process, n, start, seed, half)


def null_trace(process: str, n: int, start: str, seed: int, half: Half = "exploratory") -> Trace:
    """Make one synthetic run.

    Args:
        process: name in `PROCESSES`.
        n: number of probes.
        start: name in `STARTS`.
        seed: seed of the start and of the path.
        half: what the run is used for.
    """
    place = [list(PROCESSES).index(process), list(STARTS).index(start)]
    rng = np.random.default_rng([seed, n, *place])
    margins = PROCESSES[process](rng, STARTS[start](rng, n))
    probes = np.arange(n)
    groups = probes // CLUSTER if process == "clusters" else probes % CATEGORIES
    unknown = np.full(STEPS, np.nan)
    own = BehaviorTrace(margins, groups, unknown, np.full(1, np.nan), FLOOR)
    about = {"process": process, "start": start, "n_probes": n, "seed": seed}
    return Trace(
        "nulls", f"{process}-{start}-{n:03d}-{seed}", half, about, np.arange(STEPS + 1),
        np.ones(STEPS), unknown, np.zeros(1, dtype=int), {"behavior": own},
    )  # fmt: skip
