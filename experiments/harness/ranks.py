"""Statistics of ranks that several experiments report."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def roc_area(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve; ties count half.

    Args:
        positives, negatives: scores, shapes (n, ...) and (m, ...); the result has shape (...).
    """
    n, m = len(positives), len(negatives)
    ranks = rankdata(np.concatenate([positives, negatives]), axis=0)[:n].sum(0)
    return np.asarray((ranks - n * (n + 1) / 2) / (n * m))
