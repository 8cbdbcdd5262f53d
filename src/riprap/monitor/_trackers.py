"""Trackers: sinks of a monitor's numbers and alerts, which never stop training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from riprap._warnings import warn
from riprap.types import Alert

if TYPE_CHECKING:
    from riprap.monitor._monitor import Monitor


class Tracker:
    """Sink of numbers and alerts. Overwrite what the sink can take; see `integrations.trackers`.

    Attributes:
        says_the_end: whether `end` says the summary of the run, so that callbacks need not.
    """

    says_the_end: ClassVar[bool] = False

    def begin(self, monitor: Monitor) -> None:
        """Note that a watch has begun; its first evaluation is over."""

    def step(self, step: int) -> None:
        """Note that a step was taken, and what the monitor did after it."""

    def train(self, numbers: Mapping[str, float], step: int) -> None:
        """Take numbers of the training itself, such as `loss`, where they are logged."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a probe evaluation.

        Args:
            numbers: such as `riprap/refusal/score`, as `Monitor.metrics` returns them.
            step: optimizer steps so far.
        """

    def alert(self, alert: Alert) -> None:
        """Take an alert that raised the level of a behavior."""

    def flush(self) -> None:
        """Write what is pending; called at the end of each watch."""

    def end(self) -> None:
        """Note that the watch and its record have ended."""


class TrackerGroup:
    """The trackers of one monitor. One that fails is recorded, named in a warning and left out.

    Args:
        on_failure: called with step, name and error of a tracker that failed.
    """

    def __init__(
        self, trackers: Sequence[Tracker], on_failure: Callable[[int, str, Exception], None]
    ) -> None:
        self._trackers, self._on_failure = list(trackers), on_failure
        self._step = 0
        self._begun: set[int] = set()  # trackers to which the open watch is known, by id

    def __iter__(self) -> Iterator[Tracker]:
        return iter(self._trackers)

    def add(self, tracker: Tracker) -> None:
        """Add a tracker."""
        self._trackers.append(tracker)

    def begin(self, monitor: Monitor) -> None:
        """Tell the trackers that do not know it yet that a watch has begun."""
        new = [tracker for tracker in self._trackers if id(tracker) not in self._begun]
        self._begun |= {id(tracker) for tracker in new}
        self._each(lambda tracker: tracker.begin(monitor), new)

    def step(self, step: int) -> None:
        """Tell all trackers of a step."""
        self._step = step
        if self._trackers:
            self._each(lambda tracker: tracker.step(step))

    def train(self, numbers: Mapping[str, float], step: int) -> None:
        """Give numbers of the training to all trackers."""
        self._each(lambda tracker: tracker.train(dict(numbers), step))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Give the numbers of a probe evaluation to all trackers."""
        self._step = step
        if numbers:
            self._each(lambda tracker: tracker.log(dict(numbers), step))

    def alert(self, alert: Alert) -> None:
        """Give an alert to all trackers."""
        self._each(lambda tracker: tracker.alert(alert))

    def flush(self) -> None:
        """Let all trackers write what is pending: the watch ends."""
        self._begun.clear()
        self._each(lambda tracker: tracker.flush())

    def end(self) -> None:
        """Tell all trackers that the watch has ended; the record takes no failures any more."""
        for tracker in self._trackers:
            try:
                tracker.end()
            except Exception as error:  # noqa: BLE001 a tracker's failure never ends a run
                warn(f"the tracker {type(tracker).__name__} failed at the end: {error}")

    def _each(
        self, call: Callable[[Tracker], None], trackers: Sequence[Tracker] | None = None
    ) -> None:
        for tracker in list(self._trackers if trackers is None else trackers):
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 a tracker's failure never ends a run
                self._trackers.remove(tracker)
                name = f"tracker {type(tracker).__name__}"
                self._on_failure(self._step, name, error)
                warn(f"the {name} gets nothing more in this run")
