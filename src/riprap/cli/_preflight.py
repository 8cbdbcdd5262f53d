"""`riprap preflight`: predict what a configured run will break."""

from __future__ import annotations

from pathlib import Path

import typer

from riprap.cli._common import AS_JSON, FINDING, command, print_result

app = typer.Typer()


@app.command()
@command
def preflight(
    config: Path = typer.Argument(..., help="Configuration of riprap watch, as YAML."),
    out: Path | None = typer.Option(
        None,
        help="Folder of the report; default: preflight in the run's folder, so that the pages of "
        "the run show its rows (where run_dir has {time}: in the working directory).",
    ),
    rows: int = typer.Option(256, help="Rows to score, drawn at random; 0: all."),
    warm_steps: int = typer.Option(16, help="Steps of the warm start, on a copy of the model."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only measure what it will cost."),
    as_json: bool = AS_JSON,
) -> int:
    """Predict which behaviors the run of CONFIG will break, when, and by which rows.

    Exit code 2 if a break is predicted within the configured steps, or was seen in the warm start
    and their learning rates sum to as much.
    """
    from riprap._config import read_yaml
    from riprap.commands.preflight import estimate_preflight, run_preflight
    from riprap.commands.watch import WatchConfig
    from riprap.errors import ConfigError

    if rows < 0 or warm_steps < 1:
        raise ConfigError("give at least one warm step, and --rows of at least 0 (0: all rows)")
    settings, n_rows = WatchConfig.load(config), rows or None
    if out is None:  # {time} is another one when the run starts
        is_known = "{time}" not in str(read_yaml(config)["run_dir"])
        out = settings.run_dir / "preflight" if is_known else Path("preflight")
    if dry_run:
        cost = estimate_preflight(settings, n_rows, warm_steps, quiet=as_json)
        print_result(cost, as_json, [cost["text"]])
        return 0
    result = run_preflight(settings, out, n_rows, warm_steps, quiet=as_json)
    lines = [result["verdict"], f"peak memory: {result['peak']}"]
    lines += [f"{name}: {file}" for name, file in result["files"].items()]
    print_result(result, as_json, lines)
    return FINDING if result["predicted_to_break"] else 0
