"""As moderate, by loss: what the gradient adds over what the forward pass knows."""

from __future__ import annotations

from riprap.selection.strategies._moderate import Moderate


class ModerateByLoss(Moderate):
    """Of C those whose L_i is nearest the median (a control of ours for 2604.17215)."""

    name = "moderate_by_loss"
    needs = frozenset()
    source, verdict = "control for 2604.17215", "ours"
    by = "loss"
