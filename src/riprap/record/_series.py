"""Values by step, in little memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

import numpy as np


class Series(Mapping[int, float]):
    """Values by step, in ascending order of the steps; 16 bytes each.

    Args:
        pairs: (step, value). Of several values of one step, the last one counts.
    """

    def __init__(self, pairs: Iterable[tuple[int, float]] = ()) -> None:
        self._steps, self._values = array("q"), array("d")
        for step, value in pairs:
            self.add(step, value)

    def add(self, step: int, value: float) -> None:
        """Add a value."""
        if not self._steps or step > self._steps[-1]:
            self._values.append(value)
            self._steps.append(step)
            return
        at = bisect_left(self._steps, step)
        if self._steps[at] == step:
            self._values[at] = value
        else:
            self._values.insert(at, value)
            self._steps.insert(at, step)

    def __getitem__(self, step: int) -> float:
        at = bisect_left(self._steps, step)
        if at == len(self._steps) or self._steps[at] != step:
            raise KeyError(step)
        return self._values[at]

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return f"Series({list(self.pairs())!r})"

    def pairs(self) -> Iterator[tuple[int, float]]:
        """Iterate over (step, value)."""
        return zip(self._steps, self._values, strict=True)

    def take(self, places: Iterable[int]) -> Series:
        """Return the values at these places in the order of the steps, from 0."""
        return Series((self._steps[at], self._values[at]) for at in places)

    @property
    def step_array(self) -> np.ndarray:
        """The steps, int64, shape (n,)."""
        return np.array(self._steps, dtype=np.int64)

    @property
    def value_array(self) -> np.ndarray:
        """The values, float64, shape (n,)."""
        return np.array(self._values, dtype=np.float64)
