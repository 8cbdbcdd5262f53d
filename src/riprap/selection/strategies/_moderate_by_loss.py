"""Moderate by loss: a control that shows the value of gradients over losses alone."""

from __future__ import annotations

from riprap.selection.strategies._moderate import Moderate


class ModerateByLoss(Moderate):
    """Samples of C with L_i nearest to its median (our control for 2604.17215)."""

    name = "moderate_by_loss"
    needs = frozenset()
    source, fidelity = "control for 2604.17215", "ours"
    score_name = "loss"
