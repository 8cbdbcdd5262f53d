"""Strategies: rules that choose the rows to learn from, as pure functions of `Scores`."""

from riprap.errors import ConfigError
from riprap.selection.strategies._adaptive import Adaptive
from riprap.selection.strategies._base import Strategy, own_candidates
from riprap.selection.strategies._high import High
from riprap.selection.strategies._least_harm import LeastHarm
from riprap.selection.strategies._low import Low
from riprap.selection.strategies._moderate import Moderate
from riprap.selection.strategies._moderate_by_loss import ModerateByLoss
from riprap.selection.strategies._proxy import Proxy
from riprap.selection.strategies._random import Random
from riprap.selection.strategies._risk import Risk
from riprap.selection.strategies._taylor import Taylor

ALL_STRATEGIES: tuple[type[Strategy], ...] = (
    *(Random, Low, Moderate, ModerateByLoss, High, Proxy, LeastHarm, Taylor, Risk, Adaptive),
)


def get_strategy(name: str | Strategy) -> Strategy:
    """Return the strategy by that name; a `Strategy` is returned unchanged.

    Raises:
        ConfigError: there is no strategy by that name.
    """
    if isinstance(name, Strategy):
        return name
    by_name = {strategy.name: strategy for strategy in ALL_STRATEGIES}
    if name not in by_name:
        raise ConfigError(f"no strategy {name!r}: choose one of {', '.join(by_name)}")
    return by_name[name]()


__all__ = [
    "ALL_STRATEGIES",
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
    "get_strategy",
    "own_candidates",
]
