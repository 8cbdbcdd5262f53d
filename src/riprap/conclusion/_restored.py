"""What brings lost behaviors back, as diagnoses of the run's checkpoints have measured it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from riprap._checks import is_number
from riprap._formatting import format_score
from riprap._text import shorten
from riprap.conclusion._rows import DAMAGE
from riprap.record import DIAGNOSIS, Reader, load_result, results_of_run, state_of_weights


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
        measured = f"(measured on {self.checkpoint}, with the diagnosis' probes)"
        return f"{self.how} brings it {only} to {score} {measured}"


def restored_behaviors(reader: Reader) -> tuple[dict[str, Restored], tuple[str, ...]]:
    """Return what brings behaviors back, by their names; and which diagnoses are not used.

    For each behavior and checkpoint the newest diagnosis counts, also if it restored nothing; of
    several checkpoints, the one that was diagnosed last. Nothing is claimed of a checkpoint whose
    weights were written anew since.
    """
    if reader.path is None:
        return {}, ()
    folder, started = reader.path.parent, reader.meta().get("started")
    found, unused = [], []
    for file in reversed(results_of_run(folder, DIAGNOSIS)):
        place = shorten(str(file.relative_to(folder)))
        try:
            document = load_result(file)
            run = document.get("run")  # None: of a model that lies in no run's folder
            if run is not None and run["started"] == started:
                checkpoint = str(run["checkpoint"])
                restored = _read(document, folder, checkpoint, place)
                names = {own["name"] for own in document["behaviors"]} | restored.keys()
                if restored and _is_changed(folder / checkpoint, run.get("weights")):
                    restored = {}
                    unused.append(f"{place} is not used: its checkpoint was written anew since.")
                found.append((str(document.get("written", "")), checkpoint, names, restored))
        except DAMAGE:
            unused.append(f"{place} could not be read.")
    latest: dict[tuple[str, str], Restored | None] = {}
    for _, checkpoint, names, restored in sorted(found, key=lambda own: own[0]):
        for name in names:
            latest.pop((checkpoint, name), None)  # so that the newest stands last
            latest[checkpoint, name] = restored.get(name)
    return {name: own for (_, name), own in latest.items() if own is not None}, tuple(unused)


def _read(
    document: dict[str, Any], folder: Path, checkpoint: str, place: str
) -> dict[str, Restored]:
    last = shorten(PurePosixPath(checkpoint).name or folder.resolve().name)
    found = {}
    for name, own in document["restored"].items():
        if not is_number(own["score"]) or not 0 <= own["score"] <= 1:
            raise ValueError(f"the score of {name} is not between 0 and 1")
        found[name] = Restored(shorten(str(own["how"])), float(own["score"]), last, place)
    return found


def _is_changed(checkpoint: Path, weights: Any) -> bool:
    """Return whether a checkpoint holds other weights now; one that was removed does not."""
    now = state_of_weights(checkpoint)
    return weights is not None and bool(now) and now != weights
