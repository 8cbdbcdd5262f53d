"""Commands after the fact: diagnose."""

from __future__ import annotations

from pathlib import Path

import typer

from riprap.cli._common import AS_JSON, FINDING, command, say

app = typer.Typer()


@app.command()
@command
def diagnose(
    base: str = typer.Argument(..., help="The model before: folder, Hugging Face id, or smollm2."),
    tuned: str = typer.Argument(..., help="The model after, or folder of a LoRA adapter of BASE."),
    out: Path = typer.Option(Path("diagnosis"), help="Folder of the report."),
    behaviors: list[str] = typer.Option([], help="Pack, or .jsonl of your own; repeatable."),
    openers: list[str] = typer.Option([], help="What refusals of BASE begin with; repeatable."),
    probes: int = typer.Option(16, help="Probes a behaviour; half of it where answers are chosen."),
    never: str | None = typer.Option(None, help="A model that never had the behaviours: control."),
    run: Path | None = typer.Option(None, help="Run that made TUNED: its checkpoints and data."),
    save_repair: Path | None = typer.Option(None, help="Folder for the cheapest repaired model."),
    as_json: bool = AS_JSON,
) -> int:
    """What TUNED lost of BASE, whether it still can, and what brings it back.

    Exit code 2 where a behaviour is under its floor.
    """
    from riprap.commands.diagnose import DiagnoseConfig
    from riprap.commands.diagnose import diagnose as job

    given = {"base": base, "tuned": tuned, "out": out, "openers": openers, "probes": probes}
    given |= {"never": never, "run": run, "save_repair": save_repair}
    given |= {"behaviors": behaviors} if behaviors else {}
    found = job(DiagnoseConfig.parse(given, "riprap diagnose"), quiet=as_json)
    lines = [one["in words"] for one in found["behaviors"].values()]
    if found["lost"]:
        chosen = found["cheapest"] or "none of those that were tried"
        lines.append(f"cheapest repair that brings all to their floors: {chosen}")
    if found["saved"]:
        lines.append(f"repaired model: {found['saved']}")
    lines += [f"peak memory: {found['peak']}", f"report: {found['report']}"]
    say(found, as_json, lines)
    return FINDING if found["broken"] else 0
