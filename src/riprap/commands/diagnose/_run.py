"""`riprap diagnose`: examine a tuned model, try repairs on a copy if asked, write the page."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from safetensors.torch import save_file

from riprap.commands._memory import peak_memory
from riprap.commands._out import result_folder
from riprap.commands.diagnose._config import N_EXAMPLES, DiagnoseConfig
from riprap.commands.diagnose._evals import load_changes
from riprap.commands.diagnose._loading import (
    ADAPTER_CONFIG,
    MergedLoraWeights,
    ModelPair,
    find_folder,
    load_pair,
    open_weights,
)
from riprap.commands.diagnose._probes import load_task, watch_config_of
from riprap.commands.diagnose._runner import DiagnosisRunner, StageTimer
from riprap.commands.watch import TRAINER_FOLDER
from riprap.diagnosis import (
    BehaviorDiagnosis,
    Diagnosis,
    Repair,
    Weights,
    apply_repair,
    cheapest_repair,
    matching_names,
    merged_weights,
)
from riprap.errors import ConfigError
from riprap.evals import TaskChange
from riprap.record import DIAGNOSIS, origin_of_model, run_of_model, save_result
from riprap.report import (
    describe_repair,
    diagnosis_headline,
    evals_line,
    evals_of_behavior,
    write_diagnosis,
)

NO_REPAIRS = "not run: --repairs"
REPAIRED_BY = {  # by kind of repair
    "few-shot": f"training on {N_EXAMPLES} of its examples",
    "replay": f"replaying {N_EXAMPLES} examples of each behavior",
    "interpolation": "merging with the base model",
    "interpolation of layers": "merging some layers with those of the base model",
    "task vector": "subtracting a task vector",
    "checkpoint": "going back to an earlier checkpoint",
}


def diagnose(config: DiagnoseConfig, quiet: bool = False) -> dict[str, Any]:
    """Measure which behaviors a tuned model lost, why, and (on demand) what restores them.

    Only one model is in memory; the weights of the other are read from its files.

    Args:
        quiet: write the progress bars to standard error.

    Returns:
        `report`, `data` (files), `behaviors` by name, `lost`, `broken`, `cheapest`, `saved`,
        `repairs` (why none was tried; empty otherwise), `evals` (changes of tasks), `evals_line`,
        `peak`, `seconds`.

    Raises:
        RiprapError: the models, the run or the settings cannot be used.
    """
    config = _check_paths(config)
    # Before the work: a record or evals may be unreadable.
    origin = origin_of_model(Path(config.tuned).expanduser(), config.run)
    changes = load_changes(config)
    console = Console(file=sys.stderr) if quiet else Console()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        timer = StageTimer(bars)
        with timer.stage("loading"):
            pair = load_pair(config.base, config.tuned)
            naive_model = _load_naive_model(config, pair)
            task = load_task(config.run, pair.tokenizer) if config.repairs else None
            checkpoints = _checkpoints(config, pair)
        runner = DiagnosisRunner(config, pair, timer, naive_model)
        runner.measure_scores()
        if not any(result.probes for result in runner.results.values()):
            raise ConfigError(
                f"the model {config.base!r} has none of these behaviors to lose: "
                + "; ".join(f"{n}: {one.why_unmeasured}" for n, one in runner.probes.items())
            )
        if runner.lost:
            with timer.stage("estimate") as report:
                parts = runner.estimate_seconds(report)
            bars.console.print(expected_time(runner.lost, parts), soft_wrap=True)
        for name in runner.lost:
            runner.explain_loss(name)
        if runner.lost and config.full:
            runner.run_linear_path()
        divergence = runner.run_divergence()
        repairs = runner.run_repairs(task, checkpoints) if runner.lost and task else []
        settings = config.model_dump(mode="json")
        diagnosis = Diagnosis(
            config.base,
            config.tuned,
            list(runner.results.values()),
            divergence,
            repairs,
            cheapest_repair=None,
            cost_measure="" if task is None else task.origin,
            settings={name: v for name, v in settings.items() if v not in (None, [], ())},
            seconds=timer.seconds,
            peak_memory="",
            no_repairs=NO_REPAIRS if runner.lost and not config.repairs else "",
        )
        if repairs:
            diagnosis.cheapest_repair = cheapest_repair(repairs, diagnosis.floors)
        if config.save_repair is not None:
            with timer.stage("saving"):
                _save(pair, diagnosis.cheapest_repair, config.save_repair)
        diagnosis.peak_memory = peak_memory()
    return _write_results(diagnosis, runner.lost, config, origin, changes)


def restored(diagnosis: Diagnosis) -> dict[str, dict[str, Any]]:
    """Return what brings each broken behavior back best, by name, as it was measured.

    That is the cheapest repair that brings all behaviors to their floors; without one, the fewest
    relearned examples that bring this one there, or those that bring back most.
    """
    found: dict[str, dict[str, Any]] = {}
    for own in diagnosis.behaviors:
        if not own.is_broken:
            continue
        repair, recovery = diagnosis.cheapest_repair, own.recovery
        if repair is not None and repair.kind in REPAIRED_BY:
            how, score = how_repaired(repair), repair.scores[own.name]
        else:
            points = [] if recovery is None else [p for p in recovery.curve if p.source == "own"]
            points = [point for point in points if math.isfinite(point.score.mean)]
            if not points:
                continue
            enough = [point for point in points if point.score.mean >= own.floor]
            best = min(enough, key=lambda p: p.count, default=None)
            best = best or max(points, key=lambda p: p.score.mean)
            how, score = f"training on {best.count} of its examples", best.score.mean
        found[own.name] = {"how": how, "score": score}
    return found


def how_repaired(repair: Repair) -> str:
    """Say what a repair does, and with which setting."""
    if repair.kind == "checkpoint":
        return f"going back to {repair.detail}"
    if repair.kind == "interpolation" and repair.amount == 1:
        return "going back to the base model"
    return f"{REPAIRED_BY[repair.kind]} ({repair.detail})"


def measure_scores(config: DiagnoseConfig, bars: Progress) -> list[BehaviorDiagnosis]:
    """Score the behaviors of the base model in the tuned model; explain and repair nothing.

    Raises:
        RiprapError: the models or the settings cannot be used.
    """
    timer = StageTimer(bars)
    with timer.stage("loading"):
        pair = load_pair(config.base, config.tuned)
    runner = DiagnosisRunner(config, pair, timer, None)
    runner.measure_scores()
    return list(runner.results.values())


def expected_time(lost: list[str], parts: dict[str, tuple[float, float]]) -> str:
    """Say how long each part takes, and at most."""
    names = ", ".join(lost)
    spans = [f"{part} {_span(*seconds)}" for part, seconds in parts.items()]
    low, high = (sum(seconds[end] for seconds in parts.values()) for end in (0, 1))
    return f"lost: {names}. Estimate: {_span(low, high)} ({'; '.join(spans)})."


def _span(expected: float, most: float) -> str:
    """Format a duration, with its upper bound if that differs."""
    texts = [_duration(expected), _duration(most)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]}, at most {texts[1]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds)):.0f} s"
    return f"{math.ceil(seconds / 60)} min"


def _load_naive_model(config: DiagnoseConfig, pair: ModelPair) -> Weights | None:
    if config.naive_model is None:
        return None
    weights = open_weights(find_folder(config.naive_model), pair.model)
    matching_names(pair.model, weights)
    return weights


def _check_paths(config: DiagnoseConfig) -> DiagnoseConfig:
    """Raise a ConfigError for unusable folders before anything slow starts.

    Returns:
        the same with the folder that `out` means: its default, or with the present time in the
        place of `{time}`.
    """
    if config.save_repair is not None and config.save_repair.exists():
        raise ConfigError(f"--save-repair {config.save_repair} already exists; pass a new folder")
    wanted = config.out
    if wanted is None:
        run = run_of_model(Path(config.tuned).expanduser())
        name = "diagnosis"
        wanted = Path(name) if run is None else run / f"{name}-{Path(config.tuned).resolve().name}"
    out = result_folder(wanted, DIAGNOSIS, "report.html")
    if config.run is not None:
        watch_config_of(config.run)
    return config.model_copy(update={"out": out})


def _checkpoints(config: DiagnoseConfig, pair: ModelPair) -> dict[str, Weights]:
    """Weights of the run's checkpoints, the latest first, without the tuned model itself."""
    if config.run is None:
        return {}
    tuned = find_folder(config.tuned).resolve()
    folders = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in (config.run / TRAINER_FOLDER).glob("checkpoint-*[0-9]")
        if folder.resolve() != tuned and folder.name.rpartition("-")[2].isdecimal()
    }
    return {
        folder.name: MergedLoraWeights(pair.base, folder)
        if (folder / ADAPTER_CONFIG).is_file()
        else open_weights(folder, pair.model)
        for _, folder in sorted(folders.items(), reverse=True)
    }


def _save(pair: ModelPair, repair: Repair | None, folder: Path) -> None:
    """Save the repaired model to a new folder."""
    if repair is None or repair.strategy is None:
        return
    with apply_repair(repair):
        merged = merged_weights(pair.model)
        weights = {name: part.contiguous().cpu() for name, part in merged.items()}
    try:
        folder.mkdir(parents=True)
        pair.model.config.save_pretrained(folder)
        pair.tokenizer.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except OSError as error:
        raise ConfigError(f"cannot save the repaired model to {folder}: {error}") from error


def _write_results(
    diagnosis: Diagnosis,
    lost: list[str],
    config: DiagnoseConfig,
    origin: dict[str, Any] | None,
    changes: Sequence[TaskChange],
) -> dict[str, Any]:
    assert config.out is not None
    page = write_diagnosis(diagnosis, config.out, changes)
    data = config.out / DIAGNOSIS
    document = to_json(diagnosis) | {"run": origin, "restored": restored(diagnosis)}
    document["evals"] = evals = [
        to_json(own) | {"change": to_json(own.change), "outcome": own.outcome} for own in changes
    ]
    save_result(document | {"written": datetime.now(UTC).isoformat()}, data)
    cheapest = diagnosis.cheapest_repair
    is_saved = cheapest is not None and cheapest.strategy is not None
    return {
        "report": str(page),
        "data": str(data),
        "behaviors": {one.name: _summarize(one, changes) for one in diagnosis.behaviors},
        "evals": evals,
        "evals_line": evals_line(changes),
        "lost": lost,
        "broken": [one.name for one in diagnosis.behaviors if one.is_broken],
        "cheapest": None if cheapest is None else describe_repair(cheapest),
        "repairs": diagnosis.no_repairs,
        "saved": str(config.save_repair) if config.save_repair and is_saved else None,
        "peak": diagnosis.peak_memory,
        "seconds": diagnosis.seconds,
    }


def _summarize(behavior: BehaviorDiagnosis, changes: Sequence[TaskChange]) -> dict[str, Any]:
    recovery = behavior.recovery
    return {
        "verdict": None if recovery is None else str(recovery.verdict),
        "reason": behavior.missing.get("probes") if recovery is None else recovery.reason,
        "summary": diagnosis_headline(behavior),
        "evals": evals_of_behavior(behavior, changes),
        "before": to_json(behavior.score_before),
        "now": to_json(behavior.score_now),
        "floor": behavior.floor,
        "probes": behavior.probes,
    }


def to_json(value: Any) -> Any:
    """Convert to JSON types; NaN and infinity become null, repair strategies are omitted."""
    if is_dataclass(value):
        names = [field.name for field in fields(value) if field.name != "strategy"]
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(name): to_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str)) or value is None else str(value)
