"""A prediction as `riprap preflight` makes it, from numbers alone."""

from __future__ import annotations

import numpy as np

from riprap.prediction import BehaviorPrediction, Outlook, Preflight
from riprap.types import Forecast

STEPS = 200


def outlook(probability: float, low: float = 40.0, high: float = 90.0) -> Outlook:
    return Outlook(-0.02, Forecast(60.0, low, high, STEPS), probability)


def predicted(rows: int = 40) -> Preflight:
    """Refusal is predicted to break, arithmetic is not."""
    random = np.random.default_rng(0)
    behaviors = {}
    for name, probability in (("refusal", 0.9), ("arithmetic", 0.1)):
        harm = random.normal(0.01, 0.02, rows)
        margins = random.normal(3, 1, 24)
        behaviors[name] = BehaviorPrediction(
            name,
            0.9,
            margins + 1,
            margins,
            np.full(24, -0.02),
            harm,
            harm,
            harm,
            -0.02,
            outlook(probability),
            np.argsort(-harm),
            7,
            outlook(probability / 2),
            {0.25: outlook(probability / 9)},
        )
    ones = np.ones(rows)
    numbers = np.arange(rows)
    return Preflight(
        behaviors,
        {"poetry": "the model passes 2 of its 24 probes"},
        numbers,
        rows,
        ones * 12,
        ones,
        ones * 0.5,
        ones,
        STEPS,
        16,
        (8, 16),
        0.8,
        {},
    )
