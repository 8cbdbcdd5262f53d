"""Strategies: which samples of a batch are learned from. One a file, pure functions of `Scores`."""

from riprap.errors import ConfigError
from riprap.selection.strategies._adaptive import Adaptive
from riprap.selection.strategies._base import Strategy
from riprap.selection.strategies._high import High
from riprap.selection.strategies._least_harm import LeastHarm
from riprap.selection.strategies._low import Low
from riprap.selection.strategies._moderate import Moderate
from riprap.selection.strategies._moderate_by_loss import ModerateByLoss
from riprap.selection.strategies._proxy import Proxy
from riprap.selection.strategies._random import Random
from riprap.selection.strategies._risk import Risk
from riprap.selection.strategies._taylor import Taylor

EVERY: tuple[type[Strategy], ...] = (
    *(Random, Low, Moderate, ModerateByLoss, High, Proxy, LeastHarm, Taylor, Risk, Adaptive),
)


def strategy_of(name: str | Strategy) -> Strategy:
    """The strategy by that name, or the one that was given.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(name, Strategy):
        return name
    found = {kind.name: kind for kind in EVERY}
    if name not in found:
        raise ConfigError(f"no strategy {name!r}: choose one of {', '.join(found)}")
    return found[name]()


__all__ = [
    "EVERY",
    "Adaptive",
    "High",
    "LeastHarm",
    "Low",
    "Moderate",
    "ModerateByLoss",
    "Proxy",
    "Random",
    "Risk",
    "Strategy",
    "Taylor",
    "strategy_of",
]
