"""Commands around one training: demo, watch, select, doctor, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from riprap.cli._common import AS_JSON, FINDING, command, say
from riprap.errors import ConfigError

app = typer.Typer()


@app.command()
@command
def demo(
    seed: int = typer.Option(1000, help="Seed of the world and of the order of the data."),
    run: Path = typer.Option(Path("runs"), help="Folder under which the run is recorded."),
    as_json: bool = AS_JSON,
) -> int:
    """Watch a small model lose a skill while it learns another; then a report to read."""
    from riprap.toy import _demo as job

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
    from riprap.commands.watch import WatchConfig, watched_run
    from riprap.commands.watch import _cost_estimate as dry

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
    behaviors: list[str] = typer.Option([], help="Pack or .jsonl of your own; repeatable."),
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
    from riprap.commands.select import SelectConfig, select_rows

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
    from riprap.commands import examine

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
    from riprap.report import write_page

    page = write_page(run, out or locate(run).parent / "report.html")
    say({"report": page}, as_json, [f"report: {page}"])
    return 0


def _finish_watch(outcome: dict[str, Any], as_json: bool) -> int:
    broken = {name: step for name, step in outcome["broken"].items() if step is not None}
    lines = [f"{name} broke: seen at step {step}" for name, step in broken.items()]
    say(outcome, as_json, [*lines, f"report: {outcome['report']}"])
    return FINDING if broken else 0
