"""`riprap study`: reproducible experiments."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import typer

from riprap.cli import AS_JSON, command, say

study_app = typer.Typer(help="Reproducible experiments.", no_args_is_help=True)

EXPLORATORY = typer.Option(False, help="Use the exploratory seeds.")
OUT = typer.Option(None, help="Folder of tables and figures; results/NAME unless given.")
WORKERS = typer.Option(2, help="Processes, one thread each.")
DATA = typer.Option(Path("../shared/data"), help="Folder of the public data sets.")
SEARCH = typer.Option(False, help="Search each guard's knob on the exploratory seeds.")

# Studies that differ in nothing but what they do: `experiments.NAME.run.run`.
PLAIN = {
    "toy": "Four conditions on the toy world; resumable.",
    "depth": "Does a more deeply installed behaviour leave more time to see it go? Resumable.",
    "steep": "Does a task act on a behaviour's steep directions? Resumable.",
    "guarded": "SmolLM2 eroding: unguarded, replay, the best guard, the Keeper; resumable.",
    "verdicts": "Verdicts on checkpoints of which it is known what they lost; resumable.",
    "spurious": "Spurious forgetting on made-up biographies: which findings replicate? Resumable.",
    "concentrated": "Are safety behaviours special, or merely concentrated? Resumable.",
    "circuit": "Does a task on disjoint words harm by the circuit that it shares? Resumable.",
    "detour": "Does erosion come round by other features once some are held? Resumable.",
}


def _plain(name: str, words: str) -> None:
    def study(
        out: Path | None = OUT,
        exploratory: bool = EXPLORATORY,
        workers: int = WORKERS,
        as_json: bool = AS_JSON,
    ) -> int:
        run = import_module(f"experiments.{name}.run").run
        folder = out or Path("results", name)
        summary = run(folder, exploratory=exploratory, workers=workers)
        said = summary.get("verdicts", summary if "verdict" in summary else {})
        say(summary, as_json, [*(f"{k}: {v}" for k, v in said.items()), f"results: {folder}"])
        return 0

    study.__doc__ = words
    study_app.command(name)(command(study))


for _name, _words in PLAIN.items():
    _plain(_name, _words)


@study_app.command("detectors")
@command
def study_detectors(
    out: Path | None = OUT,
    workers: int = WORKERS,
    as_json: bool = AS_JSON,
) -> int:
    """False alarms and delays of every detector, on real and resampled runs; resumable."""
    from experiments.detectors.run import run as run_study

    summary = run_study(out or Path("results/detectors"), workers=workers)
    say(summary, as_json, [f"results: {out or 'results/detectors'}"])
    return 0


@study_app.command("transfer")
@command
def study_transfer(
    out: Path | None = OUT,
    search: bool = SEARCH,
    front: bool = typer.Option(False, help="Compare the Keeper with others at equal time."),
    workers: int = WORKERS,
    as_json: bool = AS_JSON,
) -> int:
    """Every guard against every behaviour: which field's tools carry over; resumable."""
    from experiments.transfer import run as study

    work = study.search if search else study.compare if front else study.run
    made = work(out or Path("results/transfer"), workers)
    say(made, as_json, [f"results: {out or 'results/transfer'}"])
    return 0


@study_app.command("chosen")
@command
def study_chosen(
    out: Path | None = OUT,
    data: Path = DATA,
    exploratory: bool = typer.Option(False, help="A few steps, to see that everything runs."),
    as_json: bool = AS_JSON,
) -> int:
    """SmolLM2 on mixed rows: what selectors take, and what refusals come to; resumable."""
    from experiments.row_selection_smollm2.run import run as run_study

    summary = run_study(out or Path("results/chosen"), data, exploratory=exploratory)
    say(summary, as_json, [f"{key}: {value}" for key, value in summary.items()])
    return 0


@study_app.command("continual")
@command
def study_continual(
    out: Path | None = OUT,
    search: bool = SEARCH,
    workers: int = WORKERS,
    as_json: bool = AS_JSON,
) -> int:
    """Four tasks in a row on an aligned model: which rows to learn from; resumable."""
    from experiments.continual import run as study

    work = study.search if search else study.run
    made = work(out or Path("results/continual"), workers)
    say(made, as_json, [f"results: {out or 'results/continual'}"])
    return 0


@study_app.command("smollm2")
@command
def study_smollm2(
    out: Path | None = OUT,
    data: Path = DATA,
    prepare: bool = typer.Option(False, help="Only teach the model to refuse, and save it."),
    as_json: bool = AS_JSON,
) -> int:
    """Two fine-tuning runs of SmolLM2 that has been taught to refuse; resumable."""
    from experiments.smollm2.run import run as run_study
    from experiments.smollm2.teaching import make

    result = make(data) if prepare else run_study(out or Path("results/smollm2"), data)
    say(result, as_json, [f"{key}: {value}" for key, value in result.items()])
    return 0
