"""`riprap protocol`: freeze, verify, amend and calibrate thresholds."""

from __future__ import annotations

from pathlib import Path

import typer

from riprap.cli._common import AS_JSON, FINDING, command, say

policy_app = typer.Typer(help="Freeze, verify and amend protocols.", no_args_is_help=True)


@policy_app.command("freeze")
@command
def policy_freeze(file: Path, as_json: bool = AS_JSON) -> int:
    """Write the content hash into FILE."""
    from riprap.detectors import AlertPolicy

    frozen = AlertPolicy.load(file).freeze()
    frozen.save(file)
    say({"hash": frozen.hash}, as_json, [f"{file}: frozen as {frozen.hash}"])
    return 0


@policy_app.command("verify")
@command
def policy_verify(file: Path, as_json: bool = AS_JSON) -> int:
    """Check that FILE is what was frozen; exit code 2 where it is not."""
    from riprap._config import read_yaml
    from riprap.detectors import AlertPolicy
    from riprap.errors import PolicyError

    policy = AlertPolicy.parse(read_yaml(file, PolicyError), str(file), PolicyError)
    try:
        policy.verify()
    except PolicyError as error:
        say({"verified": False, "why": str(error)}, as_json, [str(error)])
        return FINDING
    say({"verified": True, "hash": policy.hash}, as_json, [f"{file}: verified {policy.hash}"])
    return 0


@policy_app.command("amend")
@command
def policy_amend(
    file: Path,
    changed: Path = typer.Option(..., help="A protocol file with the new detectors and study."),
    reason: str = typer.Option(..., help="Why; it is written beside the old hash."),
    as_json: bool = AS_JSON,
) -> int:
    """Amend the frozen protocol FILE, keeping the old hash with date and reason."""
    from riprap._config import read_yaml
    from riprap.detectors import AlertPolicy
    from riprap.errors import PolicyError

    new = AlertPolicy.parse(read_yaml(changed, PolicyError), str(changed), PolicyError)
    amended = AlertPolicy.load(file).amend(reason, detectors=new.detectors)
    amended.save(file)
    say({"hash": amended.hash}, as_json, [f"{file}: amended, now {amended.hash}"])
    return 0


@policy_app.command("calibrate")
@command
def policy_calibrate(
    runs: list[Path] = typer.Argument(..., help="Null runs: nothing new was learned in them."),
    out: Path = typer.Option(..., help="Where to write the calibrated protocol."),
    policy: Path | None = typer.Option(None, help="Protocol file; the default one if not given."),
    as_json: bool = AS_JSON,
) -> int:
    """Set tolerances and noise scales from null RUNS; exit code 2 where false alarms remain."""
    from riprap.detectors import AlertPolicy, calibrated, false_alarms, largest_decline, null_tracks

    old = AlertPolicy.default() if policy is None else AlertPolicy.load(policy)
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
