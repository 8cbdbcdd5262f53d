"""Terms of the bench, as its preregistration fixes them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from experiments.guards_bench.grounds import GROUNDS
from experiments.guards_bench.methods import METHODS
from experiments.harness.plan import StudyPlan

EXPLORATORY, CONFIRMATORY, FRESH = PARTS = ("exploratory", "confirmatory", "fresh")
Key = tuple[str, str, float, int]  # ground, method, value, seed


class Plan(StudyPlan):
    """Terms of the bench.

    The exploratory part is the exploratory grounds on the exploratory seeds. The confirmatory part
    is the other grounds, and the confirmatory seeds of all grounds. The fresh part is grounds that
    were made after the confirmatory part was opened, on the confirmatory seeds.

    Attributes:
        exploratory, confirmatory: seeds.
        explored: the exploratory grounds; `kept_back`: the confirmatory ones; `fresh`: the newest.
        budget: work and processor time at which methods are compared, in units of the plain run's.
        noise: a difference from the plain run that is never called harm.
        few: the same where there are fewer than three seeds.
        learned: share of the plain run's new-task accuracy that counts as learned.
        knobs: the value of each guard's knob that the search chose; empty before the search.
        opened: the other parts may be looked at. An amendment sets it, once AutoGuard and
            the knobs stand.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
    explored: tuple[str, ...]
    kept_back: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    budget: float = Field(gt=0)
    noise: float = Field(gt=0)
    few: float = Field(gt=0)
    learned: float = Field(gt=0, le=1)
    knobs: dict[str, float] = Field(default_factory=dict)
    opened: bool = False

    def grounds(self, part: str) -> tuple[str, ...]:
        """Return the grounds of a part."""
        return {
            EXPLORATORY: self.explored,
            CONFIRMATORY: self.kept_back + self.explored,
            FRESH: self.fresh,
        }[part]

    def jobs(
        self, part: str, search: bool = False, only: Sequence[str] = (), seeds: int | None = None
    ) -> list[Key]:
        """Return the runs of a part, seed by seed.

        Args:
            search: every value of each knob on the first seed; otherwise its default, and the value
                that the search chose.
            only: names of grounds and methods; without any of a kind, all of it.
            seeds: number of seeds; None: all.
        """
        grounds = [name for name in self.grounds(part) if name in only]
        methods = [name for name in METHODS if name in only]
        wanted = set(methods or METHODS)
        chosen = self.seeds(part == EXPLORATORY)[: 1 if search else seeds]
        return [
            (ground, name, value, seed)
            for seed in chosen
            for ground in grounds or self.grounds(part)
            for name in GROUNDS[ground].methods or METHODS
            if name in wanted
            for value in self._values(name, search)
        ]

    def _values(self, name: str, search: bool) -> list[float]:
        values = METHODS[name].values
        own = values if search else (values[0], self.knobs.get(name, values[0]))
        return list(dict.fromkeys(own))
