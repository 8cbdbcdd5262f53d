"""`riprap study`: reproducible experiments."""

from __future__ import annotations

from pathlib import Path

import typer

from riprap.cli.common import AS_JSON, command, say

study_app = typer.Typer(help="Reproducible experiments.", no_args_is_help=True)


@study_app.command("toy")
@command
def study_toy(
    out: Path = typer.Option(Path("results/toy"), help="Folder of tables and figures."),
    exploratory: bool = typer.Option(False, help="Use the exploratory seeds."),
    workers: int = typer.Option(2, help="Processes, one thread each."),
    as_json: bool = AS_JSON,
) -> int:
    """Four conditions on the toy world; resumable."""
    from riprap.studies.toy.run import run as run_study

    summary = run_study(out, exploratory=exploratory, workers=workers)
    say(summary, as_json, [f"results: {out}"])
    return 0


@study_app.command("detectors")
@command
def study_detectors(
    out: Path = typer.Option(Path("results/detectors"), help="Folder of tables and figures."),
    workers: int = typer.Option(2, help="Processes, one thread each."),
    as_json: bool = AS_JSON,
) -> int:
    """False alarms and delays of every detector, on real and resampled runs; resumable."""
    from riprap.studies.detectors.run import run as run_study

    summary = run_study(out, workers=workers)
    say(summary, as_json, [f"results: {out}"])
    return 0


@study_app.command("transfer")
@command
def study_transfer(
    out: Path = typer.Option(Path("results/transfer"), help="Folder of tables and figure."),
    search: bool = typer.Option(False, help="Search each guard's knob on the exploratory seeds."),
    front: bool = typer.Option(False, help="Compare the Keeper with others at equal time."),
    workers: int = typer.Option(2, help="Processes, one thread each."),
    as_json: bool = AS_JSON,
) -> int:
    """Every guard against every behaviour: which field's tools carry over; resumable."""
    from riprap.studies.transfer import run as study

    work = study.search if search else study.compare if front else study.run
    made = work(out, workers)
    say(made, as_json, [f"results: {out}"])
    return 0


@study_app.command("guarded")
@command
def study_guarded(
    out: Path = typer.Option(Path("results/guarded"), help="Folder of table and figure."),
    exploratory: bool = typer.Option(False, help="Try the guards on the exploratory seeds."),
    workers: int = typer.Option(2, help="Processes, one thread each."),
    as_json: bool = AS_JSON,
) -> int:
    """SmolLM2 on the erosion example: unguarded, replay, the best guard, the Keeper; resumable."""
    from riprap.studies.guarded.run import run as run_study

    summary = run_study(out, exploratory=exploratory, workers=workers)
    say(summary, as_json, [f"results: {out}"])
    return 0


@study_app.command("chosen")
@command
def study_chosen(
    out: Path = typer.Option(Path("results/chosen"), help="Folder of table and figure."),
    data: Path = typer.Option(Path("../shared/data"), help="Folder of the public data sets."),
    exploratory: bool = typer.Option(False, help="A few steps, to see that everything runs."),
    as_json: bool = AS_JSON,
) -> int:
    """SmolLM2 on mixed rows: what selectors take, and what refusals come to; resumable."""
    from riprap.studies.chosen.run import run as run_study

    summary = run_study(out, data, exploratory=exploratory)
    say(summary, as_json, [f"{key}: {value}" for key, value in summary.items()])
    return 0


@study_app.command("continual")
@command
def study_continual(
    out: Path = typer.Option(Path("results/continual"), help="Folder of tables and figures."),
    search: bool = typer.Option(False, help="Search each guard's knob on the exploratory seed."),
    workers: int = typer.Option(2, help="Processes, one thread each."),
    as_json: bool = AS_JSON,
) -> int:
    """Four tasks in a row on an aligned model: which rows to learn from; resumable."""
    from riprap.studies.continual import run as study

    work = study.search if search else study.run
    made = work(out, workers)
    say(made, as_json, [f"results: {out}"])
    return 0


@study_app.command("depth")
@command
def study_depth(
    out: Path = typer.Option(Path("results/depth"), help="Folder of table and figure."),
    exploratory: bool = typer.Option(False, help="Use the exploratory seeds."),
    workers: int = typer.Option(2, help="Processes, one thread each."),
    as_json: bool = AS_JSON,
) -> int:
    """Does a more deeply installed behaviour leave more time to see it go? Resumable."""
    from riprap.studies.depth.run import run as run_study

    summary = run_study(out, exploratory=exploratory, workers=workers)
    say(summary, as_json, [f"verdict: {summary['verdict']}", f"results: {out}"])
    return 0


@study_app.command("steep")
@command
def study_steep(
    out: Path = typer.Option(Path("results/steep"), help="Folder of tables and figure."),
    exploratory: bool = typer.Option(False, help="Use the exploratory seeds."),
    workers: int = typer.Option(2, help="Processes, one thread each."),
    as_json: bool = AS_JSON,
) -> int:
    """Does a task act on a behaviour's steep directions where cosines are near 0? Resumable."""
    from riprap.studies.steep.run import run as run_study

    summary = run_study(out, exploratory=exploratory, workers=workers)
    lines = [f"{claim}: {verdict}" for claim, verdict in summary["verdicts"].items()]
    say(summary, as_json, [*lines, f"results: {out}"])
    return 0


@study_app.command("smollm2")
@command
def study_smollm2(
    out: Path = typer.Option(Path("results/smollm2"), help="Folder of tables and figures."),
    data: Path = typer.Option(Path("../shared/data"), help="Folder of the public data sets."),
    prepare: bool = typer.Option(False, help="Only teach the model to refuse, and save it."),
    as_json: bool = AS_JSON,
) -> int:
    """Two fine-tuning runs of SmolLM2 that has been taught to refuse; resumable."""
    from riprap.studies.smollm2.run import run as run_study
    from riprap.studies.smollm2.teaching import make

    result = make(data) if prepare else run_study(out, data)
    say(result, as_json, [f"{key}: {value}" for key, value in result.items()])
    return 0
