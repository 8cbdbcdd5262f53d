"""`riprap policy`: freeze, verify, amend and calibrate an alert policy."""

from __future__ import annotations

from pathlib import Path

import typer

from riprap.cli._common import AS_JSON, FINDING, command, print_result
from riprap.errors import ConfigError

policy_app = typer.Typer(
    help="Freeze, verify, amend and calibrate alert policies.", no_args_is_help=True
)


@policy_app.command("freeze")
@command
def policy_freeze(
    file: Path = typer.Argument(..., help="Alert policy as YAML."), as_json: bool = AS_JSON
) -> int:
    """Write the content hash of the policy into FILE."""
    from riprap.detectors import AlertPolicy

    frozen = AlertPolicy.load(file).freeze()
    frozen.save(file)
    print_result({"hash": frozen.hash}, as_json, [f"{file}: frozen as {frozen.hash}"])
    return 0


@policy_app.command("verify")
@command
def policy_verify(
    file: Path = typer.Argument(..., help="Frozen alert policy."), as_json: bool = AS_JSON
) -> int:
    """Check that FILE has not changed since it was frozen; exit code 2 if it has."""
    from riprap._config import read_yaml
    from riprap.detectors import AlertPolicy
    from riprap.errors import PolicyError

    policy = AlertPolicy.parse(read_yaml(file, PolicyError), str(file), PolicyError)
    try:
        policy.verify()
    except PolicyError as error:
        print_result({"verified": False, "why": str(error)}, as_json, [str(error)])
        return FINDING
    verified = f"{file}: verified {policy.hash}"
    print_result({"verified": True, "hash": policy.hash}, as_json, [verified])
    return 0


@policy_app.command("amend")
@command
def policy_amend(
    file: Path = typer.Argument(..., help="Frozen alert policy to change."),
    changed: Path = typer.Option(..., help="Alert policy with the new detectors."),
    reason: str = typer.Option(..., help="Reason of the change; stored beside the old hash."),
    as_json: bool = AS_JSON,
) -> int:
    """Replace the detectors of a frozen policy; FILE records old hash, date and reason."""
    from riprap._config import read_yaml
    from riprap.detectors import AlertPolicy
    from riprap.errors import PolicyError

    new = AlertPolicy.parse(read_yaml(changed, PolicyError), str(changed), PolicyError)
    amended = AlertPolicy.load(file).amend(reason, detectors=new.detectors)
    amended.save(file)
    print_result({"hash": amended.hash}, as_json, [f"{file}: amended, now {amended.hash}"])
    return 0


@policy_app.command("calibrate")
@command
def policy_calibrate(
    runs: list[Path] = typer.Argument(..., help="Null runs: training that taught nothing new."),
    out: Path = typer.Option(..., help="Output file of the calibrated policy."),
    policy: Path | None = typer.Option(None, help="Policy to calibrate; default: the shipped one."),
    as_json: bool = AS_JSON,
) -> int:
    """Set tolerances and noise scales from null runs; exit code 2 if false alarms remain."""
    from riprap import detectors

    if out.exists():
        raise ConfigError(f"--out {out} exists, and policies are not overwritten: pass a new file")
    old = detectors.AlertPolicy.default() if policy is None else detectors.AlertPolicy.load(policy)
    histories = detectors.null_histories(runs)
    new = detectors.calibrate(old, histories, f"calibrated on {', '.join(map(str, runs))}")
    new.save(out)
    before, after = detectors.false_alarms(old, histories), detectors.false_alarms(new, histories)
    declines = {run.behavior: round(detectors.largest_decline(run), 4) for run in histories}
    lines = [f"{name}: largest decline {decline:.1%}" for name, decline in declines.items()]
    lines += [f"false alarms before: {len(before)}, after: {len(after)}", f"{out}: {new.hash}"]
    result = {"hash": new.hash, "declines": declines, "before": before, "after": after}
    print_result(result, as_json, [*lines, *after])
    return FINDING if after else 0
