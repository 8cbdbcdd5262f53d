"""Strategies: rules that choose the rows to learn from, as pure functions of `Scores`."""

from riprap.errors import ConfigError
from riprap.selection.strategies._adaptive import Adaptive
from riprap.selection.strategies._base import Strategy, own_candidates
from riprap.selection.strategies._high import High
from riprap.selection.strategies._least_harm import LeastHarm
from riprap.selection.strategies._low import Low
from riprap.selection.strategies._matched_random import (
    MatchedRandom,
    RandomByCategory,
    RandomByLength,
)
from riprap.selection.strategies._moderate import Moderate
from riprap.selection.strategies._moderate_by_loss import ModerateByLoss
from riprap.selection.strategies._proxy import Proxy
from riprap.selection.strategies._random import Random
from riprap.selection.strategies._risk import Risk
from riprap.selection.strategies._taylor import Taylor

ALL_STRATEGIES: tuple[type[Strategy], ...] = (
    *(Random, Low, Moderate, ModerateByLoss, High, Proxy, LeastHarm, Taylor, Risk, Adaptive),
    *(RandomByLength, RandomByCategory),
)


def get_strategy(name: str | Strategy) -> Strategy:
    """Return the strategy by that name; a `Strategy` is returned unchanged.

    `random_by_length:high` matches the lengths of `high`; without a second name, of `moderate`.

    Raises:
        ConfigError: there is no strategy by that name, or it matches no other.
    """
    if isinstance(name, Strategy):
        return name
    by_name = {strategy.name: strategy for strategy in ALL_STRATEGIES}
    outer, separator, inner = name.partition(":")
    if outer not in by_name:
        raise ConfigError(f"no strategy {outer!r}: choose one of {', '.join(by_name)}")
    kind = by_name[outer]
    if not separator:
        return kind()
    if not issubclass(kind, MatchedRandom):
        raise ConfigError(f"{name!r}: {outer} matches no other strategy, so name it alone")
    return kind(get_strategy(inner))


__all__ = [
    "ALL_STRATEGIES",
    "Adaptive",
    "High",
    "LeastHarm",
    "Low",
    "MatchedRandom",
    "Moderate",
    "ModerateByLoss",
    "Proxy",
    "Random",
    "RandomByCategory",
    "RandomByLength",
    "Risk",
    "Strategy",
    "Taylor",
    "get_strategy",
    "own_candidates",
]
