"""What brings lost behaviors back, as diagnoses of the run's checkpoints have measured it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from riprap._formatting import format_score
from riprap._text import shorten
from riprap.errors import RecordError
from riprap.record import DIAGNOSIS, Reader, load_result, results_of_run


@dataclass(frozen=True)
class Restored:
    """What a repair of a checkpoint brought back, measured on a copy.

    Attributes:
        how: what was done, such as "training on 10 of its examples".
        score: of the behavior after it, on probes that did not choose the repair.
        checkpoint: name of the checkpoint's folder.
        place: of the diagnosis in the run's folder.
    """

    how: str
    score: float
    checkpoint: str
    place: str

    def sentence(self, floor: float) -> str:
        """Return it as the end of a sentence about the behavior."""
        only = "back" if self.score >= floor else "only"
        score = format_score(self.score, floor)
        return f"{self.how} brings it {only} to {score} (measured on {self.checkpoint})"


def restored_behaviors(reader: Reader) -> tuple[dict[str, Restored], tuple[str, ...]]:
    """Return what brings behaviors back, by their names; and which diagnoses could not be read.

    Of several diagnoses of the run, the newest counts.
    """
    if reader.path is None:
        return {}, ()
    folder, started = reader.path.parent, reader.meta().get("started")
    found: dict[str, Restored] = {}
    unread = []
    for file in results_of_run(folder, DIAGNOSIS):
        place = shorten(str(file.relative_to(folder)))
        try:
            document = load_result(file)
            run = document.get("run")  # None: of a model that lies in no run's folder
            if run is not None and run["started"] == started:
                found = _read(document, place) | found
        except (AttributeError, KeyError, RecordError, TypeError, ValueError):
            unread.append(place)
    return found, tuple(unread)


def _read(document: dict[str, Any], place: str) -> dict[str, Restored]:
    checkpoint = shorten(str(document["run"]["checkpoint"]).rpartition("/")[2])
    return {
        name: Restored(shorten(str(own["how"])), float(own["score"]), checkpoint, place)
        for name, own in document["restored"].items()
    }
