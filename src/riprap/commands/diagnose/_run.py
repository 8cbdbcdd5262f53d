"""`riprap diagnose`: examine, repair on a copy, write the page."""

from __future__ import annotations

import json
import math
import resource
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from safetensors.torch import save_file

from riprap.commands.diagnose._config import DiagnoseConfig
from riprap.commands.diagnose._loading import (
    ADAPTER_CONFIG,
    Adapted,
    Pair,
    folder_of,
    load_pair,
    weights_in,
)
from riprap.commands.diagnose._probes import configured, task_of
from riprap.commands.diagnose._runner import Examination, Parts
from riprap.commands.watch import TRAINER
from riprap.diagnosis import Weights, fitting
from riprap.diagnosis.repair import Repair, cheapest, repaired, whole_weights
from riprap.errors import ConfigError
from riprap.report import Diagnosed, Diagnosis, write_diagnosis
from riprap.report import _diagnosis_text as say

DATA = "diagnosis.json"


def diagnose(config: DiagnoseConfig, quiet: bool = False) -> dict[str, Any]:
    """Find out what a tuned model lost, whether it still could, and what brings it back.

    One model in memory; the weights of the other are read from its files.

    Args:
        quiet: draw the progress bars on standard error.

    Returns:
        `report`, `data` (files), `behaviors` by name, `lost`, `broken`, `cheapest`, `peak`,
        `seconds`.

    Raises:
        RiprapError: what is wrong with the models, the run or the settings.
    """
    _refuse_early(config)
    console = Console(file=sys.stderr) if quiet else Console()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        parts = Parts(bars)
        with parts.part("loading"):
            pair = load_pair(config.base, config.tuned)
            never = _never(config, pair)
            task = task_of(config.run, pair.tokenizer)
            checkpoints = _checkpoints(config, pair)
        work = Examination(config, pair, parts, never)
        work.look()
        if not any(one.probes for one in work.found.values()):
            raise ConfigError(
                f"the model {config.base!r} has none of these behaviours to lose: "
                + "; ".join(f"{name}: {one.why}" for name, one in work.subjects.items())
            )
        for name in work.lost:
            work.explain(name)
        if work.lost:
            work.walk()
        apart = work.apart()
        tried = work.repair(task, checkpoints) if work.lost else []
        found = Diagnosis(
            config.base,
            config.tuned,
            list(work.found.values()),
            apart,
            tried,
            None,
            task.origin,
            _settings(config),
            parts.seconds,
            "",
        )
        found.cheapest = cheapest(tried, found.floors) if tried else None
        if config.save_repair is not None:
            with parts.part("saving"):
                _save(pair, found.cheapest, config.save_repair)
        found.peak = peak_memory()
    return _written(found, work, config)


def _never(config: DiagnoseConfig, pair: Pair) -> Weights | None:
    """The weights of the control, checked before anything takes long."""
    if config.never is None:
        return None
    found = weights_in(folder_of(config.never), pair.model)
    fitting(pair.model, found)
    return found


def _refuse_early(config: DiagnoseConfig) -> None:
    """What can be seen to be wrong before anything takes long."""
    if config.save_repair is not None and config.save_repair.exists():
        raise ConfigError(f"--save-repair {config.save_repair}: it is there already")
    if config.out.exists() and not config.out.is_dir():
        raise ConfigError(f"--out {config.out} is a file: name a folder")
    if config.run is not None:
        configured(config.run)


def _settings(config: DiagnoseConfig) -> dict[str, Any]:
    asked = config.model_dump(mode="json")
    return {name: value for name, value in asked.items() if value not in (None, [], ())}


def _checkpoints(config: DiagnoseConfig, pair: Pair) -> dict[str, Weights]:
    """Those of the run, the newest first, without the tuned model itself."""
    if config.run is None:
        return {}
    own = folder_of(config.tuned).resolve()
    steps = {
        int(one.name.rpartition("-")[2]): one
        for one in (config.run / TRAINER).glob("checkpoint-*[0-9]")
        if one.resolve() != own and one.name.rpartition("-")[2].isdecimal()
    }
    folders = [steps[step] for step in sorted(steps, reverse=True)]
    return {
        one.name: Adapted(pair.base, one)
        if (one / ADAPTER_CONFIG).is_file()
        else weights_in(one, pair.model)
        for one in folders
    }


def _save(pair: Pair, chosen: Repair | None, folder: Path) -> None:
    """The repaired model as a folder of its own.

    Raises:
        ConfigError: it cannot be written there.
    """
    if chosen is None or chosen.way is None:
        return
    with repaired(chosen):
        weights = {
            name: part.contiguous().cpu() for name, part in whole_weights(pair.model).items()
        }
    try:
        folder.mkdir(parents=True)
        pair.model.config.save_pretrained(folder)
        pair.tokenizer.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except OSError as error:
        raise ConfigError(f"cannot save the repaired model to {folder}: {error}") from error


def peak_memory() -> str:
    """The most memory that this process took, in words."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    text = f"{peak:.2f} GiB"
    if torch.cuda.is_available():
        text += f", and {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the accelerator"
    return text


def _written(found: Diagnosis, work: Examination, config: DiagnoseConfig) -> dict[str, Any]:
    page = write_diagnosis(found, config.out)
    data = config.out / DATA
    data.write_text(json.dumps(plain(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    chosen = found.cheapest
    saved = config.save_repair if chosen is not None and chosen.way is not None else None
    return {
        "report": str(page),
        "data": str(data),
        "behaviors": {one.name: _brief(one) for one in found.behaviors},
        "lost": work.lost,
        "broken": [one.name for one in found.behaviors if one.broke],
        "cheapest": None if chosen is None else say.advice(chosen),
        "saved": None if saved is None else str(saved),
        "peak": found.peak,
        "seconds": found.seconds,
    }


def _brief(one: Diagnosed) -> dict[str, Any]:
    verdict = None if one.recovery is None else str(one.recovery.verdict)
    reason = one.missing.get("probes") if one.recovery is None else one.recovery.reason
    return {
        "verdict": verdict,
        "reason": reason,
        "in words": say.headline(one),
        "before": plain(one.before),
        "now": plain(one.now),
        "floor": one.floor,
        "probes": one.probes,
    }


def plain(value: Any) -> Any:
    """What JSON knows: numbers that are none are null, ways of repairs are left out."""
    if is_dataclass(value):
        names = [one.name for one in fields(value) if one.name != "way"]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str)) or value is None else str(value)
