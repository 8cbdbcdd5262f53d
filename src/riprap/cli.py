"""The command line: parse, call, print. Exit codes: 0 fine, 1 an error, 2 a finding."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import typer
from rich.console import Console
from rich.text import Text

from riprap.evidence import ConfigError, RiprapError
from riprap.plain import plain

app = typer.Typer(
    help="Watch a model while it is trained further; see what erodes before it breaks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
study_app = typer.Typer(help="Reproducible experiments.", no_args_is_help=True)
protocol_app = typer.Typer(help="Freeze, verify and amend protocols.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.add_typer(protocol_app, name="protocol")

FINDING = 2
click.UsageError.exit_code = (
    1  # 2 is a finding, and a script must not mistake a typing error for one
)
AS_JSON = typer.Option(False, "--json", help="Print the result as JSON and nothing else.")


def command(function: Callable[..., int]) -> Callable[..., None]:
    """Run a command; an error of ours becomes one sentence and exit code 1."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = function(*args, **kwargs)
        except RiprapError as error:
            text = Text.assemble(("error: ", "bold red"), plain(str(error)))
            Console(stderr=True).print(text, soft_wrap=True)
            raise typer.Exit(1) from error
        raise typer.Exit(code)

    return run


def say(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """Print a result for machines or for people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))
    else:
        for line in lines:
            typer.echo(plain(line))


@app.command()
@command
def demo(
    seed: int = typer.Option(1000, help="Seed of the world and of the order of the data."),
    run: Path = typer.Option(Path("runs"), help="Folder under which the run is recorded."),
    as_json: bool = AS_JSON,
) -> int:
    """Watch a small model lose a skill while it learns another; then a report to read."""
    from riprap.studies import demo as job

    _finish_watch(job.run(seed, run, quiet=as_json), as_json)
    return 0  # that something breaks is what the demo is there to show


@app.command()
@command
def watch(
    config: Path,
    dry_run: bool = typer.Option(False, "--dry-run", help="Only measure what it would cost."),
    resume: bool = typer.Option(False, "--resume", help="Go on from the newest checkpoint."),
    as_json: bool = AS_JSON,
) -> int:
    """Fine-tune as CONFIG says, under a monitor."""
    from riprap.launch import WatchConfig, dry, watched_run

    asked = WatchConfig.load(config)
    if dry_run and resume:
        raise ConfigError("--dry-run measures a run from its start: leave out --resume")
    if not dry_run:
        return _finish_watch(watched_run(asked, quiet=as_json, resume=resume), as_json)
    found = dry.dry_run(asked, quiet=as_json)
    if as_json:
        say(found, as_json, [])
    else:
        dry.show(found, Console())
    return 0


@app.command()
@command
def select(
    data: Path = typer.Argument(..., help="Rows as JSON Lines."),
    model: str = typer.Option(..., help="Folder, Hugging Face id, or smollm2."),
    out: Path = typer.Option(..., help="Folder of scores, chosen rows and audit."),
    strategy: str = typer.Option("moderate", help="Which rows are taken."),
    ratio: float = typer.Option(0.2, help="Share of the rows that is taken."),
    behaviors: list[str] = typer.Option([], help="Pack whose erosion is predicted; repeatable."),
    openers: list[str] = typer.Option([], help="What refusals begin with; repeatable."),
    prompt: str = typer.Option("prompt", help="Field of the prompt; a dot goes deeper."),
    response: str = typer.Option("response", help="Field of the response."),
    id: str | None = typer.Option(None, help="Field that names a row."),
    category: str | None = typer.Option(None, help="Field by which rows are told apart."),
    lora_rank: int = typer.Option(32, help="Of the adapter to be trained; 0: all parameters."),
    batch: int = typer.Option(8, help="Rows a forward pass."),
    max_length: int = typer.Option(256, help="Tokens a row; longer ones are cut."),
    as_json: bool = AS_JSON,
) -> int:
    """Choose rows of DATA to train on, by their gradients; resumable."""
    from riprap.launch.select import SelectConfig, select_rows

    given = {"strategy": strategy, "ratio": ratio, "id": id, "category": category}
    given |= {"behaviors": behaviors, "openers": openers, "lora_rank": lora_rank}
    fields = {"path": str(data), "prompt": prompt, "response": response}
    config = SelectConfig.parse(
        {"data": fields, "model": model, "out": out, "batch": batch, "max_length": max_length}
        | given,
        "riprap select",
    )
    found = select_rows(config, quiet=as_json)
    say(found, as_json, [f"{name}: {file}" for name, file in found["files"].items()])
    return 0


@app.command()
@command
def doctor(as_json: bool = AS_JSON) -> int:
    """Versions, what is supported here, and a self-test; exit code 2 where a check fails."""
    from riprap.launch.doctor import examine

    found = examine()
    lines = [
        f"{name}: {value}"
        for part in ("versions", "support")
        for name, value in found[part].items()
    ]
    lines += [
        f"{'ok  ' if c['passed'] else 'FAIL'} {c['name']}: {c['detail']}" for c in found["checks"]
    ]
    say(found, as_json, lines)
    return 0 if all(check["passed"] for check in found["checks"]) else FINDING


@app.command()
@command
def report(run: Path, out: Path | None = None, as_json: bool = AS_JSON) -> int:
    """Write the HTML report of RUN, a run's folder or its record."""
    from riprap.record import locate
    from riprap.report.page import write_page

    page = write_page(run, out or locate(run).parent / "report.html")
    say({"report": page}, as_json, [f"report: {page}"])
    return 0


def _finish_watch(outcome: dict[str, Any], as_json: bool) -> int:
    broken = {name: step for name, step in outcome["broken"].items() if step is not None}
    lines = [f"{name} broke: seen at step {step}" for name, step in broken.items()]
    say(outcome, as_json, [*lines, f"report: {outcome['report']}"])
    return FINDING if broken else 0


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


@protocol_app.command("freeze")
@command
def protocol_freeze(file: Path, as_json: bool = AS_JSON) -> int:
    """Write the content hash into FILE."""
    from riprap.detectors import Protocol

    frozen = Protocol.load(file).freeze()
    frozen.save(file)
    say({"hash": frozen.hash}, as_json, [f"{file}: frozen as {frozen.hash}"])
    return 0


@protocol_app.command("verify")
@command
def protocol_verify(file: Path, as_json: bool = AS_JSON) -> int:
    """Check that FILE is what was frozen; exit code 2 where it is not."""
    from riprap.detectors import Protocol
    from riprap.evidence import ProtocolError
    from riprap.schema import read_yaml

    protocol = Protocol.parse(read_yaml(file, ProtocolError), str(file), ProtocolError)
    try:
        protocol.verify()
    except ProtocolError as error:
        say({"verified": False, "why": str(error)}, as_json, [str(error)])
        return FINDING
    say({"verified": True, "hash": protocol.hash}, as_json, [f"{file}: verified {protocol.hash}"])
    return 0


@protocol_app.command("amend")
@command
def protocol_amend(
    file: Path,
    changed: Path = typer.Option(..., help="A protocol file with the new detectors and study."),
    reason: str = typer.Option(..., help="Why; it is written beside the old hash."),
    as_json: bool = AS_JSON,
) -> int:
    """Amend the frozen protocol FILE, keeping the old hash with date and reason."""
    from riprap.detectors import Protocol
    from riprap.evidence import ProtocolError
    from riprap.schema import read_yaml

    new = Protocol.parse(read_yaml(changed, ProtocolError), str(changed), ProtocolError)
    amended = Protocol.load(file).amend(reason, detectors=new.detectors, study=new.study)
    amended.save(file)
    say({"hash": amended.hash}, as_json, [f"{file}: amended, now {amended.hash}"])
    return 0


@protocol_app.command("calibrate")
@command
def protocol_calibrate(
    runs: list[Path] = typer.Argument(..., help="Null runs: nothing new was learned in them."),
    out: Path = typer.Option(..., help="Where to write the calibrated protocol."),
    protocol: Path | None = typer.Option(None, help="Protocol file; the default one if not given."),
    as_json: bool = AS_JSON,
) -> int:
    """Set tolerances and noise scales from null RUNS; exit code 2 where false alarms remain."""
    from riprap.detectors import Protocol
    from riprap.detectors.calibrate import calibrated, false_alarms, largest_decline, null_tracks

    old = Protocol.default() if protocol is None else Protocol.load(protocol)
    tracks = null_tracks(runs)
    new = calibrated(old, tracks, f"calibrated on {', '.join(map(str, runs))}")
    new.save(out)
    before, after = false_alarms(old, tracks), false_alarms(new, tracks)
    declines = {track.behavior: round(largest_decline(track), 4) for track in tracks}
    lines = [f"{name}: largest decline {decline:.1%}" for name, decline in declines.items()]
    lines += [f"false alarms before: {len(before)}, after: {len(after)}", f"{out}: {new.hash}"]
    result = {"hash": new.hash, "declines": declines, "before": before, "after": after}
    say(result, as_json, [*lines, *after])
    return FINDING if after else 0


if __name__ == "__main__":
    sys.exit(app())
